"""The body of `sparcom extract`: start the engine, show a bar, say what came of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sparcom_cli.shared.counts import describe_counts
from sparcom_cli.shared.waiting import waiting
from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress as Snapshot
from sparcom_data.schema import State
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings

SHOWN_FAILURES = 10
SHOWN_WAIT_SECONDS = 0.05


def run_extraction(
    settings: EngineSettings,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    output: Path,
    dataset_name: str,
) -> int:
    """Run and report; returns how many instructions are not complete."""
    console = Console(stderr=True)
    snapshot = asyncio.run(_extract(settings, instructions, options, output, dataset_name, console))
    click.echo(
        f"{output}: {describe_counts(asdict(snapshot), snapshot.instructions)}; {snapshot.tokens_done:,} tokens "
        f"in {snapshot.seconds:.1f} s ({snapshot.tokens_per_second:,.0f} a second)"
    )
    if snapshot.storage_wait_seconds >= SHOWN_WAIT_SECONDS:
        click.echo(f"  the engine waited {snapshot.storage_wait_seconds:.1f} s for storage", err=True)
    if snapshot.failed:
        _show_failures(output)
    return snapshot.failed + snapshot.cancelled


async def _extract(
    settings: EngineSettings,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    output: Path,
    dataset_name: str,
    console: Console,
) -> Snapshot:
    with waiting(f"Loading {settings.name}"):
        engine = await CaptureEngine.start(settings)
    try:
        extraction = await asyncio.to_thread(engine.prepare, instructions, options, output, dataset_name)
        for warning in extraction.warnings:
            click.echo(f"warning: {warning}", err=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, extraction.cancel)
        with _bar(console) as bar:
            task = bar.add_task("Extracting", total=len(instructions), words="")
            return await extraction.run(
                lambda snapshot: bar.update(task, completed=snapshot.complete, words=describe(snapshot))
            )
    finally:
        await engine.close()


def describe(snapshot: Snapshot) -> str:
    """The words beside the bar, which shows what is complete."""
    words = [describe_counts(asdict(snapshot), snapshot.instructions), f"{snapshot.tokens_per_second:,.0f} tokens/s"]
    if snapshot.seconds_left is not None:
        minutes, seconds = divmod(round(snapshot.seconds_left), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return " · ".join(words)


def _bar(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), console=console)


def _show_failures(output: Path) -> None:
    archive = open_archive(output)
    errors = archive.strings("error")
    failed = [index for index, state in enumerate(archive.instructions.state) if state == State.FAILED]
    for index in failed[:SHOWN_FAILURES]:
        click.echo(f"  failed {archive.instructions.id[index]!r}: {errors[index]}", err=True)
    if len(failed) > SHOWN_FAILURES:
        click.echo(f"  and {len(failed) - SHOWN_FAILURES} more; see instruction/error of the archive", err=True)
