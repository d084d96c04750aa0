"""Prepare one extraction: tokenize, plan the layout, then create the archive or reopen an interrupted one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, check_batch, dataset_sha256
from sparcom_data.resume import reopen_archive
from sparcom_data.schema import State
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, CaptureInfo, DatasetInfo, PromptInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.extraction import Extraction, ExtractionEngine, Work
from sparcom_extractor.origins import prompt_warnings
from sparcom_extractor.prompts import make_prompts, special_token_ids


def prepare_extraction(
    engine: ExtractionEngine,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    path: Path,
    dataset_name: str = "",
    *,
    resume: bool = False,
    run: str | None = None,
    alone: Collection[int] = (),
    failures: Mapping[int, str] | None = None,
    shown: Callable[[str], str] = str,
) -> Extraction:
    """Tokenize instructions, plan the layout and create the archive. Blocks for one second with thousands of
    instructions. An error leaves no new files behind.

    Args:
        resume: continue an archive in state open at `path`; create it if nothing is there. Complete and failed
            instructions are not run again. Waits some seconds for another process to end.
        run: with `resume`, the required run id of an archive that must exist; None accepts any. Without, the run id of
            the new archive; None makes one.
        alone: indices of instructions to run first, one at a time, with no other in the engine.
        failures: instructions to mark failed instead of running them, each with its reason.
        shown: changes the model's id and the warnings before they are stored.

    Raises:
        InvalidInputError: instructions or options are invalid, or differ from those of the archive to resume.
        ArchiveExistsError: `path` exists, and cannot be resumed because it is complete, or `resume` is false.
        ArchiveError: something else is at `path`.
        StorageError: the file system refused, another process writes the archive, or its run id is not `run`.
    """
    check_batch(instructions)
    tokenizer = engine.tokenizer
    limit = engine.max_model_len - max(1, options.max_tokens)
    if limit < 1:
        raise InvalidInputError(
            f"options.max_tokens: must leave room for a prompt in the model's context of {engine.max_model_len} "
            f"tokens; it is {options.max_tokens}. Lower it, or serve the model with a larger max_model_len"
        )
    prompts = make_prompts(tokenizer, instructions, options, limit, engine.vocabulary)
    runnable = [not prompt.error for prompt in prompts]
    layout = plan_layout([len(prompt.ids) for prompt in prompts], options.positions, options.max_tokens, runnable)
    # In one pass: the instructions of a large job are read from a database.
    names, categories, sources = zip(*((item.id, item.category, item.source) for item in instructions), strict=True)
    origins = [prompt.origin for prompt in prompts]
    bos, special = getattr(tokenizer, "bos_token_id", None), special_token_ids(tokenizer)
    attributes = ArchiveAttributes(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=engine.model.model_copy(update={"id": shown(engine.model.id)}),
        engine=engine.engine,
        capture=CaptureInfo(**options.model_dump(), components=engine.model.components),
        prompts=None if special is None else PromptInfo(special_token_ids=special),
        dataset=DatasetInfo(name=dataset_name, sha256=dataset_sha256(instructions)),
        warnings=[*map(shown, prompt_warnings(names, [prompt.ids for prompt in prompts], origins, bos))],
    )
    columns = InstructionColumns(
        id=names,
        category=categories,
        source=sources,
        text=[prompt.text for prompt in prompts],
        error=[prompt.error for prompt in prompts],
        origin=origins,
    )
    complete, failed = dict[int, int](), {index: "" for index, prompt in enumerate(prompts) if prompt.error}
    if resume and (run is not None or os.path.lexists(path)):
        archive, table = reopen_archive(path, attributes, columns, layout, run)
        complete = {index: int(table.token_length[index]) for index in table.complete.tolist()}
        failed = dict.fromkeys(np.flatnonzero(table.state == State.FAILED).tolist(), "")
    else:
        archive = create_archive(path, attributes.model_copy(update={"run": run}), columns, layout)
    new = {index: reason for index, reason in (failures or {}).items() if index not in complete | failed}
    work = Work(complete, failed.keys(), new, list(alone))
    return Extraction(engine, archive, prompts, layout, options, attributes.warnings, work)
