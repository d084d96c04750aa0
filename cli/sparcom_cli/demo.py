"""`sparcom demo`: the whole way on a small real model, dense and as a mixture of experts, as a user would go it.

dataset build ─▶ model fetch ─▶ model moefy ─▶ serve both ─▶ submit --wait to each ─▶ stop the server
─▶ verify and analyze each ─▶ page
Each step but the last is a command that is shown. Jobs run one at a time, and no engine runs when verify begins.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from pathlib import Path

import click

from sparcom_cli.demo_server import command, serving
from sparcom_data.errors import InvalidInputError

MODEL = "smollm2-135m-instruct"
ARCHIVE = "demo"
PER_CATEGORY = 20
MARKER = ".sparcom-demo"  # only a folder that an earlier demo made is emptied


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True)
@click.option("--model", "folder", type=click.Path(path_type=Path), help="The demo model's folder, if not models/….")
@click.option(
    "--moe",
    "experts",
    type=click.Path(path_type=Path),
    help="Folder of a mixture of experts, if not the one that is made of the demo model.",
)
@click.option("--epsilon", default="0.05", show_default=True, help="Share of neurons that is instruction-specific.")
def demo(output: Path, folder: Path | None, experts: Path | None, epsilon: str) -> None:
    """Run 120 instructions of six categories through a small real model and its mixture of experts, and compare."""
    started = time.monotonic()
    models = _models(folder, experts)
    _make_room(output)
    instructions = output / "instructions.jsonl"
    _sparcom("dataset", "build", "--synthetic-only", "--per-category", str(PER_CATEGORY), "--output", str(instructions))
    dense, mixture = models.values()
    if folder is None:
        _sparcom("model", "fetch", MODEL, "--output", str(dense))
    if experts is None:
        _sparcom("model", "moefy", "--model", str(dense), "--output", str(mixture))
    with serving(list(models.values()), output) as url:
        for archive, model in models.items():
            _submit(url, model, instructions, archive)
    archives = output / "data" / "archives"
    for archive in models:
        _sparcom("verify", str(archives / f"{archive}.zarr"), "--reference", "transformers", "--sample", "6")
    reports = [output / "report", output / "report-moe"]
    for archive, report in zip(models, reports, strict=True):
        _sparcom("analyze", str(archives / f"{archive}.zarr"), "--epsilon", epsilon, "--output", str(report))
    page = _write_page(output, *reports)
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")


def _models(folder: Path | None, experts: Path | None) -> dict[str, Path]:
    """The folders of both models, by the archive that becomes of each."""
    dense = folder or Path("models") / MODEL
    mixture = experts or Path("models") / f"{dense.absolute().name}-moe"
    if dense.absolute().name == mixture.absolute().name:
        raise InvalidInputError(
            [f"the two models are served by the names of their folders, which must differ; both are {dense.name!r}"]
        )
    return {ARCHIVE: dense, f"{ARCHIVE}-moe": mixture}


def _submit(url: str, model: Path, instructions: Path, archive: str) -> None:
    name, source = model.absolute().name, str(instructions)
    _sparcom("submit", "--server", url, "--model", name, "--input", source, "--archive", archive, "--wait")


def _write_page(output: Path, dense: Path, mixture: Path) -> Path:
    from sparcom_cli.demo_page import write_page

    return write_page(output, dense, mixture)


def _make_room(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InvalidInputError([f"the demo writes into a folder of its own; {output} is a file. Name another"])
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise InvalidInputError(
            [f"the demo writes into a folder of its own; {output} holds other files. Name another with --output"]
        )
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def _sparcom(*arguments: str) -> None:
    """Show a command and run it; its failure ends the demo with its status."""
    click.secho(f"\n$ sparcom {shlex.join(arguments)}", bold=True)
    status = subprocess.run(command(*arguments), check=False).returncode  # noqa: S603
    if status:
        raise SystemExit(status)
