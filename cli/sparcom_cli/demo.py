"""`sparcom demo`: the whole way on a small real model, its mixture of experts, and a tuned twin of each, as a user
would go it.

dataset build, once to run and once to train ─▶ model fetch ─▶ model moefy ─▶ model tune, of both
─▶ for the dense pair and for the mixtures: serve base and twin ─▶ submit --wait to each ─▶ stop the server
─▶ verify all ─▶ analyze --tuned each pair ─▶ page ─▶ alteration by category
Each step but the last two is a command that is shown. Jobs run one at a time, and no engine runs when verify begins.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import click

from sparcom_cli.demo_server import command, serving
from sparcom_data.errors import InvalidInputError

MODEL = "smollm2-135m-instruct"
ARCHIVE = "demo"
PER_CATEGORY = 20  # instructions that are run; as many after them are trained on
MARKER = ".sparcom-demo"  # only a folder that an earlier demo made is emptied
_FOLDER = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and its tuned twin: both folders, the names of their archives, and the folder of their report."""

    base: Path
    twin: Path
    archive: str
    report: Path

    @property
    def archives(self) -> dict[str, Path]:
        """The models by the names of their archives."""
        return {self.archive: self.base, f"{self.archive}-tuned": self.twin}


@click.command()
@click.option("--output", type=_FOLDER, default=Path("demo-output"), show_default=True)
@click.option("--model", "folder", type=_FOLDER, help="The demo model's folder, if not models/….")
@click.option(
    "--moe", "experts", type=_FOLDER, help="Folder of a mixture of experts, if not the one made of the demo model."
)
@click.option("--tuned", "twin", type=_FOLDER, help="Folder of the model's tuned twin, if not the one that is made.")
@click.option("--moe-tuned", "moe_twin", type=_FOLDER, help="Folder of the mixture's tuned twin, likewise.")
@click.option("--epsilon", default="0.05", show_default=True, help="Share of neurons that is instruction-specific.")
def demo(
    output: Path, folder: Path | None, experts: Path | None, twin: Path | None, moe_twin: Path | None, epsilon: str
) -> None:
    """Run 120 instructions of six categories through a small real model, its mixture of experts, and a tuned twin of
    each, and compare."""
    started = time.monotonic()
    dense, mixture = _pairs(output, folder, experts, twin, moe_twin)
    _make_room(output)
    instructions, training = output / "instructions.jsonl", output / "training.jsonl"
    _build(instructions)
    if twin is None or moe_twin is None:
        _build(training, "--skip", str(PER_CATEGORY))
    if folder is None:
        _sparcom("model", "fetch", MODEL, "--output", str(dense.base))
    if experts is None:
        _sparcom("model", "moefy", "--model", str(dense.base), "--output", str(mixture.base))
    for pair, given in ((dense, twin), (mixture, moe_twin)):
        if given is None:
            _tune(pair, training)
    for pair in (dense, mixture):
        _run(pair, instructions, output)
    _verify((dense, mixture), output)
    for pair in (dense, mixture):
        base, tuned = _archives(pair, output)
        _sparcom("analyze", base, "--tuned", tuned, "--epsilon", epsilon, "--output", str(pair.report))
    page = _write_page(output, dense.report, mixture.report, tuned_here=twin is None and moe_twin is None)
    click.echo(f"\n{_told(dense.report, mixture.report)}")
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")


def _pairs(
    output: Path, folder: Path | None, experts: Path | None, twin: Path | None, moe_twin: Path | None
) -> tuple[Pair, Pair]:
    """The dense model with its twin, and the mixture with its."""
    base = folder or Path("models") / MODEL
    mixture = experts or Path("models") / f"{base.absolute().name}-moe"
    found = (
        Pair(base, twin or _twin_of(base), ARCHIVE, output / "report"),
        Pair(mixture, moe_twin or _twin_of(mixture), f"{ARCHIVE}-moe", output / "report-moe"),
    )
    names = [model.absolute().name for pair in found for model in (pair.base, pair.twin)]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            [f"the models are served by the names of their folders, which must differ; they are {', '.join(names)}"]
        )
    return found


def _twin_of(base: Path) -> Path:
    return Path("models") / f"{base.absolute().name}-tuned"


def _build(file: Path, *skip: str) -> None:
    count = str(PER_CATEGORY)
    _sparcom("dataset", "build", "--synthetic-only", *skip, "--per-category", count, "--output", str(file))


def _tune(pair: Pair, training: Path) -> None:
    _sparcom("model", "tune", "--model", str(pair.base), "--data", str(training), "--output", str(pair.twin))


def _run(pair: Pair, instructions: Path, output: Path) -> None:
    """The instructions through base and twin, one server for both."""
    with serving(list(pair.archives.values()), output, f"{pair.archive}-server.log") as url:
        for archive, model in pair.archives.items():
            name, source = model.absolute().name, str(instructions)
            _sparcom("submit", "--server", url, "--model", name, "--input", source, "--archive", archive, "--wait")


def _archives(pair: Pair, output: Path) -> list[str]:
    return [str(output / "data" / "archives" / f"{archive}.zarr") for archive in pair.archives]


def _verify(pairs: tuple[Pair, ...], output: Path) -> None:
    """All of them at once: importing transformers takes longer than comparing."""
    archives = [archive for pair in pairs for archive in _archives(pair, output)]
    _sparcom("verify", *archives, "--reference", "transformers", "--sample", "6")


def _write_page(output: Path, dense: Path, mixture: Path, *, tuned_here: bool) -> Path:
    from sparcom_cli.demo_page import write_page

    return write_page(output, dense, mixture, tuned_here=tuned_here)


def _told(dense: Path, mixture: Path) -> str:
    from sparcom_cli.demo_alteration import as_text, read_alterations

    return as_text(read_alterations(dense, mixture))


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
