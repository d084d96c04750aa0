"""`sparcom extract`: run instructions offline and write an archive, without a server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import (
    EXTRACTION_OPTIONS,
    PATH,
    engine_options,
    extraction_options,
    input_option,
    make_extraction_options,
)
from sparcom_cli.shared.progress import progress_bar
from sparcom_cli.shared.text import print_failures
from sparcom_cli.shared.waiting import waiting
from sparcom_data.progress import describe_counts, describe_progress

if TYPE_CHECKING:
    from sparcom_data.progress import Progress
    from sparcom_extractor.engine import CaptureEngine
    from sparcom_extractor.extraction import Extraction
    from sparcom_extractor.settings import EngineSettings

MIN_SHOWN_WAIT_SECONDS = 0.05
CONTINUE = "To continue, run the same command with --resume"


@click.command()
@click.option("--model", required=True, help="Load this model: a folder, or a name on the Hugging Face Hub.")
@input_option
@click.option("--output", required=True, type=PATH, help="Write the archive to this new folder, NAME.zarr.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an unfinished archive at --output, with the same arguments; start one if nothing is there.",
)
@extraction_options
@engine_options
def extract(model: str, source: Path, output: Path, resume: bool, **options: Any) -> None:
    """Run instructions through a model and write an archive of its activations.

    Ctrl-C or SIGTERM stops the run: complete instructions stay, and --resume continues with the others. A second one
    ends the command at once, which is safe too.

    \b
    Exit status:
      0    every instruction is complete
      1    an instruction failed, or the run ended with an error
      2    wrong usage
      130  stopped by Ctrl-C
      143  stopped by SIGTERM
    """
    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions.files import default_dataset_name, read_instructions
    from sparcom_extractor.launch.model_files import check_model, lacks_chat_template
    from sparcom_extractor.prompts import NO_TEMPLATE, check_formats
    from sparcom_extractor.settings import EngineSettings

    extraction = make_extraction_options(**{name: options.pop(name) for name in EXTRACTION_OPTIONS})
    instructions = read_instructions(source)
    if _is_complete(output, resume):  # or fail, before the model is loaded, which may take a minute
        click.echo(f"{output}: complete; there is nothing to resume")
        return
    settings = EngineSettings(model=model, **options)
    check_model(settings)
    check_formats(instructions, extraction)
    if extraction.prompt_format == "chat" and lacks_chat_template(model):
        raise InvalidInputError(NO_TEMPLATE)
    name = default_dataset_name(source)
    progress, stopped_by = asyncio.run(
        _run(settings, lambda engine: engine.prepare(instructions, extraction, output, name, resume=resume))
    )
    if stopped_by:
        done = describe_counts(asdict(progress), progress.instructions)
        click.echo(f"{output}: stopped; {done}. {CONTINUE}", err=True)
        raise SystemExit(128 + stopped_by)
    _report(output, progress)
    raise SystemExit(1 if progress.failed else 0)


def _is_complete(output: Path, resume: bool) -> bool:
    """Return whether a complete archive is at `output`, to be resumed.

    Raises:
        ArchiveExistsError: something is there, and `resume` is false.
        ArchiveError: something else than an archive is there.
    """
    from sparcom_data.archive import open_archive
    from sparcom_data.create import require_new_name
    from sparcom_data.errors import ArchiveError, ArchiveExistsError

    if resume:
        return os.path.lexists(output) and open_archive(output).attributes.state == "complete"
    try:
        unfinished = open_archive(output).attributes.state == "open"
    except ArchiveError:
        unfinished = False
    if unfinished:
        raise ArchiveExistsError(
            f"an archive must have a new name: {output} exists and is unfinished. Continue it with --resume, choose "
            "another --output, or remove it first"
        )
    require_new_name(output)
    return False


def _report(output: Path, progress: Progress) -> None:
    """Print the outcome, and the reasons of failed instructions."""
    from sparcom_data.archive import open_archive
    from sparcom_data.schema import State

    click.echo(
        f"{output}: {describe_counts(asdict(progress), progress.instructions)}; {progress.tokens_done:,} tokens "
        f"in {progress.seconds:.1f} s ({progress.tokens_per_second:,.0f} tokens/s)"
    )
    if progress.storage_wait_seconds >= MIN_SHOWN_WAIT_SECONDS:
        click.echo(f"  the engine waited {progress.storage_wait_seconds:.1f} s for storage", err=True)
    if progress.failed:
        archive = open_archive(output)
        table = zip(archive.instructions.id, archive.instructions.state, archive.strings("error"), strict=True)
        print_failures(((name, error) for name, state, error in table if state == State.FAILED), progress.failed)


async def _run(
    settings: EngineSettings, prepare: Callable[[CaptureEngine], Extraction]
) -> tuple[Progress, signal.Signals | None]:
    """Start the engine, run the extraction, close the engine. Return the signal that suspended it, if any."""
    from sparcom_data.errors import DiskFullError, EngineError
    from sparcom_extractor.engine import CaptureEngine  # imports torch, which takes seconds

    with waiting(f"Loading {settings.name}"):
        engine = await CaptureEngine.start(settings)
    try:
        extraction = await asyncio.to_thread(prepare, engine)
        for warning in extraction.warnings:
            click.echo(f"warning: {warning}", err=True)
        signals = _suspend_on_signals(extraction)
        with progress_bar("Extracting") as update:
            progress = await extraction.run(
                lambda progress: update(progress.complete, progress.instructions, describe_progress(asdict(progress)))
            )
        return progress, signals[0] if extraction.suspended else None
    except (EngineError, DiskFullError) as error:
        raise type(error)(f"{error}. {CONTINUE}") from error
    finally:
        await engine.close()


def _suspend_on_signals(extraction: Extraction) -> list[signal.Signals]:
    """Suspend the extraction at Ctrl-C or SIGTERM; the next one ends the process. Return the list of those received."""
    loop, received = asyncio.get_running_loop(), list[signal.Signals]()
    stopping = (signal.SIGINT, signal.SIGTERM)

    def stop(number: signal.Signals) -> None:
        received.append(number)
        extraction.suspend()
        for each in stopping:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for each in stopping:
        loop.add_signal_handler(each, stop, each)
    return received
