"""`sparcom model tune`. The work is done in sparcom_models.tune.tune."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from sparcom_cli.model.steps import progress, report
from sparcom_cli.shared.threads import wait_asleep

_MAX_SHOWN = 60  # characters of a continuation; continuations.json has all of it
_FILE, _FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--model", "base", help="Folder of a causal language model, or smollm2-135m-instruct, the default.")
@click.option("--data", type=_FILE, required=True, help="Instructions, JSON lines: text, messages or token_ids.")
@click.option("--output", type=_FOLDER, help="Folder to make.  [default: models/NAME-tuned]")
@click.option("--epochs", default=1.0, show_default=True, help="Passes over the instructions.")
@click.option("--learning-rate", default=5e-5, show_default=True, help="Peak rate, after a warm-up; cosine decay.")
@click.option("--batch-size", default=8, show_default=True, help="Instructions per step.")
@click.option("--max-length", default=256, show_default=True, help="Truncate instructions to this many tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed of the held-out split, the order and dropout.")
@click.option("--held-out", metavar="SHARE", default=0.05, show_default=True, help="Hold out this share of the data.")
@click.option(
    "--prompt-format",
    type=click.Choice(["raw", "chat"]),
    default="raw",
    show_default=True,
    help="As in `sparcom extract`. Of a conversation that the assistant ends, only its own tokens are learned.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Precision of matrix products in training.  [default: bfloat16 where the machine has it]",
)
def tune(base: str | None, data: Path, output: Path | None, **settings: Any) -> None:
    """Fine-tune all weights of a model briefly on instructions, to compare it with its base.

    The folder also gets loss.csv, loss.png, continuations.json (texts of both models) and held-out.json.
    """
    wait_asleep()
    from sparcom_models.tune.settings import TuneSettings
    from sparcom_models.tune.tune import tune_model

    started = time.monotonic()
    with progress() as on_progress:
        made = tune_model(base, data, output, settings=TuneSettings(**settings), on_progress=on_progress)
    source = made.source
    counts, loss, changed = source["instructions"], source["loss"], source["weights_changed"]
    training, held_out = (f"{part['before']:.3f} to {part['after']:.3f}" for part in loss.values())
    report(
        made,
        f"{counts['training']} instructions, {source['steps']} steps; "
        f"loss from {training} on those, from {held_out} on {counts['held_out']} held out",
    )
    if not made.fresh:
        return
    click.echo(f"{source['tokens_trained_on']:,} tokens trained on; {time.monotonic() - started:.0f} s with measuring")
    click.echo(f"{changed['share']:.1%} of the weights differ from the base's, by {changed['distance']:.2%} in length")
    for name, what in (("cut", "cut to --max-length"), ("left_out", "left out: nothing in them can be predicted")):
        if counts[name]:
            click.echo(f"{counts[name]} instructions were {what}")
    for item in json.loads((made.path / "continuations.json").read_text(encoding="utf-8")):
        base_text, tuned_text = (_shorten(item[name]) for name in ("base", "tuned"))
        click.echo(f"\n{item['prompt']}\n  base:  {base_text}\n  tuned: {tuned_text}")


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[: _MAX_SHOWN - 1]}…"
