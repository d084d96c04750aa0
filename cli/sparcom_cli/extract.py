"""`sparcom extract`: run instructions offline and write an archive, without a server."""

from __future__ import annotations

import asyncio
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


@click.command()
@click.option("--model", required=True, help="Load this model: a folder, or a name on the Hugging Face Hub.")
@input_option
@click.option("--output", required=True, type=PATH, help="Write the archive to this new folder, NAME.zarr.")
@extraction_options
@engine_options
def extract(model: str, source: Path, output: Path, **options: Any) -> None:
    """Run instructions through a model and write an archive of its activations.

    Exit status 1 if any instruction failed or was cancelled.
    """
    from sparcom_data.archive import open_archive
    from sparcom_data.create import require_new_name
    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions.files import default_dataset_name, read_instructions
    from sparcom_data.schema import State
    from sparcom_extractor.launch.model_files import check_model, lacks_chat_template
    from sparcom_extractor.prompts import NO_TEMPLATE, check_formats
    from sparcom_extractor.settings import EngineSettings

    extraction = make_extraction_options(**{name: options.pop(name) for name in EXTRACTION_OPTIONS})
    instructions = read_instructions(source)
    require_new_name(output)  # fail before the model is loaded, which may take a minute
    settings = EngineSettings(model=model, **options)
    check_model(settings)
    check_formats(instructions, extraction)
    if extraction.prompt_format == "chat" and lacks_chat_template(model):
        raise InvalidInputError(NO_TEMPLATE)
    name = default_dataset_name(source)
    progress = asyncio.run(_run(settings, lambda engine: engine.prepare(instructions, extraction, output, name)))
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
    raise SystemExit(1 if progress.failed or progress.cancelled else 0)


async def _run(settings: EngineSettings, prepare: Callable[[CaptureEngine], Extraction]) -> Progress:
    """Start the engine, run the extraction, close the engine. Ctrl-C cancels the extraction."""
    from sparcom_extractor.engine import CaptureEngine  # imports torch, which takes seconds

    with waiting(f"Loading {settings.name}"):
        engine = await CaptureEngine.start(settings)
    try:
        extraction = await asyncio.to_thread(prepare, engine)
        for warning in extraction.warnings:
            click.echo(f"warning: {warning}", err=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, extraction.cancel)
        with progress_bar("Extracting") as update:
            return await extraction.run(
                lambda progress: update(progress.complete, progress.instructions, describe_progress(asdict(progress)))
            )
    finally:
        await engine.close()
