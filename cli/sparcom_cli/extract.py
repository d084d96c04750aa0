"""`sparcom extract`: instructions from a file into an archive, with no server: the same code that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparcom_cli.shared.options import (
    EXTRACTION_OPTIONS,
    INPUT_HELP,
    engine_options,
    extraction_options,
    make_extraction_options,
)


@click.command()
@click.option("--model", required=True, help="Folder of the model, or its name on the Hugging Face hub.")
@click.option("--input", "source", required=True, type=click.Path(allow_dash=True, path_type=Path), help=INPUT_HELP)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The archive to write, NAME.zarr.")
@extraction_options
@engine_options
def extract(model: str, source: Path, output: Path, **options: Any) -> None:
    """Run instructions through a model and write the archive of its neurons."""
    from sparcom_data.create import require_new_name
    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions.files import default_dataset_name, read_instructions
    from sparcom_extractor.launch.model_files import check_model, lacks_chat_template
    from sparcom_extractor.prompts import NO_TEMPLATE, check_formats
    from sparcom_extractor.settings import EngineSettings

    extraction = make_extraction_options(**{name: options.pop(name) for name in EXTRACTION_OPTIONS})
    instructions = read_instructions(source)
    require_new_name(output)  # said before the minute that loading a model may take
    settings = EngineSettings(model=model, **options)
    check_model(settings)
    check_formats(instructions, extraction)
    if extraction.prompt_format == "chat" and lacks_chat_template(model):
        raise InvalidInputError([NO_TEMPLATE])
    from sparcom_cli.shared.extract_run import run_extraction  # imports torch, which takes seconds

    failed = run_extraction(settings, instructions, extraction, output, default_dataset_name(source))
    raise SystemExit(1 if failed else 0)
