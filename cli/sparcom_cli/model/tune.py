"""`sparcom model tune`: options in, what came of it out; all work is in sparcom_models.tune.tune."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.model.steps import progress, say
from sparcom_cli.shared.threads import wait_asleep

if TYPE_CHECKING:
    from sparcom_models import MadeModel

_SHOWN = 60  # characters of a continuation; all of it is in continuations.json


@click.command()
@click.option("--model", "base", help="Folder of a causal language model, or smollm2-135m-instruct, the default.")
@click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Instructions, JSON lines: text, messages or token_ids.",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder to make.  [default: models/NAME-tuned]"
)
@click.option("--epochs", default=1.0, show_default=True, help="How often each instruction is trained on.")
@click.option("--learning-rate", default=5e-5, show_default=True, help="The highest; warm-up and cosine around it.")
@click.option("--batch-size", default=8, show_default=True, help="Instructions of a step.")
@click.option("--max-length", default=256, show_default=True, help="Tokens; longer instructions are cut.")
@click.option("--seed", default=0, show_default=True, help="Of what is held out, of the order and of dropout.")
@click.option(
    "--held-out",
    metavar="SHARE",
    default=0.05,
    show_default=True,
    help="Of the instructions; not trained on, measured.",
)
@click.option(
    "--prompt-format",
    type=click.Choice(["raw", "chat"]),
    default="raw",
    show_default=True,
    help="As in `sparcom extract`. In a conversation that the assistant ends, only its own tokens are learned.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of multiplications in training.  [default: bfloat16 where the machine has it]",
)
def tune(base: str | None, data: Path, output: Path | None, **settings: Any) -> None:
    """Fine-tune a model briefly on instructions, all weights, so that a base and its tuned twin can be compared.

    The folder also gets loss.csv, loss.png, continuations.json (what base and twin say) and held-out.json.
    """
    wait_asleep()
    from sparcom_models.tune.settings import TuneSettings
    from sparcom_models.tune.tune import tune_model

    started = time.monotonic()
    with progress() as tell:
        made = tune_model(base, data, output, settings=TuneSettings(**settings), tell=tell)
    say(made, _summary(made.source))
    if made.fresh:
        _tell_more(made, time.monotonic() - started)


def _summary(source: dict[str, Any]) -> str:
    counts, losses = source["instructions"], source["loss"]
    training, held_out = (
        f"{losses[part]['before']:.3f} to {losses[part]['after']:.3f}" for part in ("training_sample", "held_out")
    )
    return (
        f"{counts['training']} instructions, {source['steps']} steps; "
        f"loss from {training} on those, from {held_out} on {counts['held_out']} held out"
    )


def _tell_more(made: MadeModel, seconds: float) -> None:
    source = made.source
    changed = source["weights_changed"]
    click.echo(f"{source['tokens_trained_on']:,} tokens trained on; {seconds:.0f} s in all, with measuring")
    click.echo(f"{changed['share']:.1%} of the weights differ from the base's, by {changed['distance']:.2%} in length")
    for name, what in (("cut", "cut to --max-length"), ("left_out", "left out: nothing in them can be predicted")):
        if count := source["instructions"][name]:
            click.echo(f"{count} instructions were {what}")
    for said in json.loads((made.path / "continuations.json").read_text(encoding="utf-8")):
        click.echo(f"\n{said['prompt']}")
        click.echo(f"  base:  {_short(said['base'])}\n  tuned: {_short(said['tuned'])}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
