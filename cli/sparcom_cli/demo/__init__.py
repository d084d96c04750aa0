"""`sparcom demo`: run a user's commands on a small real model, and print each of them.

dataset build ─▶ model fetch ─▶ serve ─▶ submit --wait ─▶ stop the server ─▶ verify ─▶ analyze.
With --moe four models run: the dense model, an MoE model made from it (model moefy), and a fine-tuned model of each
(model tune). A page and a table then compare them. Jobs run one at a time, and no engine runs during verify.
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

from sparcom_cli.demo.comparison import write_comparison
from sparcom_cli.demo.server import command, serving
from sparcom_cli.shared.options import PATH, option, optional
from sparcom_data.errors import InvalidInputError

MODEL = "smollm2-135m-instruct"
PER_CATEGORY = 20  # instructions to extract; --moe trains on the next 20
MARKER = ".sparcom-demo"  # marks a folder made by a demo; no other is emptied


@dataclass(frozen=True, slots=True)
class Pair:
    """A base model, its fine-tuned model if any, the name of its archive and the folder of its report."""

    base: Path
    tuned: Path | None
    archive: str
    report: Path

    @property
    def archives(self) -> dict[str, Path]:
        """The models by the names of their archives."""
        return {self.archive: self.base} | ({f"{self.archive}-tuned": self.tuned} if self.tuned else {})


@click.command()
@option("--output", PATH, Path("demo-output"), "Write archives and reports to this folder.")
@optional("--model", PATH, f"models/{MODEL}", "Use the model in this folder.")
@click.option(
    "--moe", is_flag=True, help="Also make an MoE and two fine-tuned models unless they exist; compare all four."
)
@optional("--moe-model", PATH, None, "Use this MoE model instead of making one. Requires --moe.")
@optional("--tuned-model", PATH, None, "Use this fine-tuned model instead of making one. Requires --moe.")
@optional("--moe-tuned-model", PATH, None, "Use this fine-tuned MoE model instead of making one. Requires --moe.")
@click.option("--top", "--epsilon", "top", help="Select this fraction of neurons as ISNs.", show_default="as analyze")
def demo(
    output: Path,
    model: Path | None,
    moe: bool,
    moe_model: Path | None,
    tuned_model: Path | None,
    moe_tuned_model: Path | None,
    top: str | None,
) -> None:
    """Run 120 instructions of six categories through a small real model, verify the archive, and write a report."""
    given = (tuned_model, moe_tuned_model)
    if not moe and (moe_model or any(given)):
        raise click.UsageError("--moe-model, --tuned-model and --moe-tuned-model need --moe")
    started = time.monotonic()
    base = model or Path("models") / MODEL
    tuned = (tuned_model or _sibling(base, "tuned")) if moe else None
    pairs = [Pair(base, tuned, "demo", output / "report")]
    if moe:
        moe_base = moe_model or _sibling(base, "moe")
        tuned = moe_tuned_model or _sibling(moe_base, "tuned")
        pairs.append(Pair(moe_base, tuned, "demo-moe", output / "report-moe"))
    names = [model.absolute().name for pair in pairs for model in pair.archives.values()]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            f"models are served under their folders' names, which must differ; got {', '.join(names)}. Rename a folder"
        )
    _prepare_folder(output)
    instructions = output / "instructions.jsonl"
    _build(instructions)
    if model is None:
        _sparcom("model", "fetch", MODEL, "--output", base)
    if moe:
        _make_models(pairs, output / "training.jsonl", moe_model, given)
    for pair in pairs:
        _extract(pair, instructions, output)
    archives = [[output / "data" / "archives" / f"{name}.zarr" for name in pair.archives] for pair in pairs]
    all_paths = [path for paths in archives for path in paths]  # in one call: importing transformers takes longest
    _sparcom("verify", *all_paths, "--reference", "transformers", "--sample", "6")
    for pair, (path, *others) in zip(pairs, archives, strict=True):
        options = [part for other in others for part in ("--tuned", other)] + (["--top", top] if top else [])
        _sparcom("analyze", path, *options, "--output", pair.report)
    page = pairs[0].report / "report.html"
    if moe:
        page, table = write_comparison(output, *(pair.report for pair in pairs), tuned_here=not any(given))
        click.echo(f"\n{table}")
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Open {page}")


def _sibling(base: Path, ending: str) -> Path:
    """Return the default folder of a model made from `base`."""
    return Path("models") / f"{base.absolute().name}-{ending}"


def _build(file: Path, *options: str) -> None:
    _sparcom("dataset", "build", "--synthetic-only", *options, "--per-category", str(PER_CATEGORY), "--output", file)


def _make_models(pairs: Sequence[Pair], training: Path, moe_model: Path | None, given: Sequence[Path | None]) -> None:
    """Make the MoE model and the fine-tuned models that were not given; existing ones are kept."""
    dense, moe = pairs
    if None in given:
        _build(training, "--skip", str(PER_CATEGORY))
    if moe_model is None:
        _sparcom("model", "moefy", "--model", dense.base, "--output", moe.base)
    for pair, tuned in zip(pairs, given, strict=True):
        if tuned is None and pair.tuned is not None:
            _sparcom("model", "tune", "--model", pair.base, "--data", training, "--output", pair.tuned)


def _extract(pair: Pair, instructions: Path, output: Path) -> None:
    """Submit the instructions to one server of the base and the fine-tuned model."""
    with serving(list(pair.archives.values()), output, f"{pair.archive}-server.log") as url:
        for archive, model in pair.archives.items():
            target = ("--server", url, "--model", model.absolute().name)
            _sparcom("submit", *target, "--input", instructions, "--archive", archive, "--wait")


def _prepare_folder(output: Path) -> None:
    """Empty the folder of an earlier demo, or make one; refuse any other."""
    if output.exists() and not output.is_dir():
        raise InvalidInputError(f"the demo needs its own folder; {output} is a file. Choose another --output")
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise InvalidInputError(f"the demo needs its own folder; {output} holds other files. Choose another --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def _sparcom(*arguments: str | Path) -> None:
    """Print a command and run it; a failure ends the demo with the command's exit status."""
    words = list(map(str, arguments))
    click.secho(f"\n$ sparcom {shlex.join(words)}", bold=True)
    status = subprocess.run(command(*words), check=False).returncode  # noqa: S603
    if status:
        raise SystemExit(status)
