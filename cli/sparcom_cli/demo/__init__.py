"""`sparcom demo`: runs the commands that a user would run, on a small real model, and shows each of them.

dataset build ─▶ model fetch ─▶ serve ─▶ submit --wait ─▶ stop the server ─▶ verify ─▶ analyze.
With --moe, four models: the dense one, a mixture of experts made of it (model moefy), and a tuned model of each (model
tune). A page and a table then compare them. Jobs run one at a time, and no engine runs when verify begins.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from sparcom_cli.demo.server import command, serving
from sparcom_data.errors import InvalidInputError

MODEL = "smollm2-135m-instruct"
ARCHIVE = "demo"
PER_CATEGORY = 20  # instructions that are run; with --moe as many after them are trained on
MARKER = ".sparcom-demo"  # only a folder that an earlier demo made is emptied
_FOLDER = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, its tuned model if there is one, the name of its archive, and the folder of its report."""

    base: Path
    tuned: Path | None
    archive: str
    report: Path

    @property
    def archives(self) -> dict[str, Path]:
        """The models by the names of their archives."""
        return {self.archive: self.base} | ({f"{self.archive}-tuned": self.tuned} if self.tuned else {})


@click.command()
@click.option(
    "--output", type=_FOLDER, default=Path("demo-output"), show_default=True, help="Folder for archives and reports."
)
@click.option("--model", "folder", type=_FOLDER, help=f"Folder of the model.  [default: models/{MODEL}]")
@click.option(
    "--moe", is_flag=True, help="Make a mixture of experts and two tuned models too, once, and compare all four."
)
@click.option("--moe-model", type=_FOLDER, help="With --moe: use this mixture of experts instead of making one.")
@click.option("--tuned-model", type=_FOLDER, help="With --moe: use this tuned model instead of making one.")
@click.option("--moe-tuned-model", type=_FOLDER, help="With --moe: use this tuned mixture of experts.")
@click.option("--epsilon", default="0.05", show_default=True, help="Share of neurons that is instruction-specific.")
def demo(
    output: Path,
    folder: Path | None,
    moe: bool,
    moe_model: Path | None,
    tuned_model: Path | None,
    moe_tuned_model: Path | None,
    epsilon: str,
) -> None:
    """Run 120 instructions of six categories through a small real model, check the archive, and write a report."""
    if not moe and (moe_model or tuned_model or moe_tuned_model):
        raise click.UsageError("--moe-model, --tuned-model and --moe-tuned-model need --moe")
    started = time.monotonic()
    subjects = _subjects(output, folder, moe_model, tuned_model, moe_tuned_model) if moe else [_dense(output, folder)]
    _make_room(output)
    instructions = output / "instructions.jsonl"
    _build(instructions)
    if folder is None:
        _sparcom("model", "fetch", MODEL, "--output", str(subjects[0].base))
    if moe:
        _make_models(subjects, output / "training.jsonl", moe_model, (tuned_model, moe_tuned_model))
    for subject in subjects:
        _run(subject, instructions, output)
    _verify(subjects, output)
    for subject in subjects:
        _analyze(subject, output, epsilon)
    page = subjects[0].report / "report.html"
    if moe:
        page = _compare(output, subjects, tuned_here=tuned_model is None and moe_tuned_model is None)
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")


def _dense(output: Path, folder: Path | None, tuned: Path | None = None) -> Subject:
    return Subject(folder or Path("models") / MODEL, tuned, ARCHIVE, output / "report")


def _subjects(
    output: Path, folder: Path | None, moe_model: Path | None, tuned: Path | None, moe_tuned: Path | None
) -> list[Subject]:
    """The dense model and the mixture of experts, each with its tuned model.

    Raises:
        InvalidInputError: two of them have the same name.
    """
    base = _dense(output, folder).base
    mixture = moe_model or Path("models") / f"{base.absolute().name}-moe"
    found = [
        _dense(output, folder, tuned or _tuned_of(base)),
        Subject(mixture, moe_tuned or _tuned_of(mixture), f"{ARCHIVE}-moe", output / "report-moe"),
    ]
    names = [model.absolute().name for subject in found for model in subject.archives.values()]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            [f"the models are served by the names of their folders, which must differ; they are {', '.join(names)}"]
        )
    return found


def _tuned_of(base: Path) -> Path:
    return Path("models") / f"{base.absolute().name}-tuned"


def _build(file: Path, *skip: str) -> None:
    count = str(PER_CATEGORY)
    _sparcom("dataset", "build", "--synthetic-only", *skip, "--per-category", count, "--output", str(file))


def _make_models(
    subjects: Sequence[Subject], training: Path, moe_model: Path | None, given: Sequence[Path | None]
) -> None:
    """Make the mixture of experts and the tuned models that were not given; existing ones are kept."""
    dense, mixture = subjects
    if None in given:
        _build(training, "--skip", str(PER_CATEGORY))
    if moe_model is None:
        _sparcom("model", "moefy", "--model", str(dense.base), "--output", str(mixture.base))
    for subject, tuned in zip(subjects, given, strict=True):
        if tuned is None:
            data, target = str(training), str(subject.tuned)
            _sparcom("model", "tune", "--model", str(subject.base), "--data", data, "--output", target)


def _run(subject: Subject, instructions: Path, output: Path) -> None:
    """Send the instructions to one server of the base and the tuned model."""
    with serving(list(subject.archives.values()), output, f"{subject.archive}-server.log") as url:
        for archive, model in subject.archives.items():
            name, source = model.absolute().name, str(instructions)
            _sparcom("submit", "--server", url, "--model", name, "--input", source, "--archive", archive, "--wait")


def _archives(subject: Subject, output: Path) -> list[str]:
    return [str(output / "data" / "archives" / f"{archive}.zarr") for archive in subject.archives]


def _verify(subjects: Sequence[Subject], output: Path) -> None:
    """All of them at once: importing transformers takes longer than comparing."""
    archives = [archive for subject in subjects for archive in _archives(subject, output)]
    _sparcom("verify", *archives, "--reference", "transformers", "--sample", "6")


def _analyze(subject: Subject, output: Path, epsilon: str) -> None:
    base, *tuned = _archives(subject, output)
    pair = [part for archive in tuned for part in ("--tuned", archive)]
    _sparcom("analyze", base, *pair, "--epsilon", epsilon, "--output", str(subject.report))


def _compare(output: Path, subjects: Sequence[Subject], *, tuned_here: bool) -> Path:
    """Write the page that compares all models, and print how tuning changed each category."""
    dense, mixture = (subject.report for subject in subjects)
    page = _write_page(output, dense, mixture, tuned_here=tuned_here)
    click.echo(f"\n{_alterations(dense, mixture)}")
    return page


def _write_page(output: Path, dense: Path, mixture: Path, *, tuned_here: bool) -> Path:
    from sparcom_cli.demo.page import write_page

    return write_page(output, dense, mixture, tuned_here=tuned_here)


def _alterations(dense: Path, mixture: Path) -> str:
    from sparcom_cli.demo.alteration import as_text, read_alterations

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
