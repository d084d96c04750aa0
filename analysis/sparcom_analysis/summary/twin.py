"""Says which twin a model was compared with, and what differs between the two archives beside the tuning.

What cannot be a model and its tuned version is refused before (`tuned.twins`); what may be, but would explain a
difference by itself, is said here in plain sentences, for metrics.json, the report and the command.
"""

from __future__ import annotations

from pathlib import PurePath

from sparcom_analysis.findings.alteration import tokens_sentence
from sparcom_analysis.schema.alteration import TwinFacts
from sparcom_analysis.tuned.twins import Twins
from sparcom_data.archive import Archive

Archives = tuple[Archive, Archive]
"""Base and tuned."""


def twin_facts(twins: Twins, archives: Archives) -> TwinFacts:
    """Which twin, how many instructions were matched, and what is to be said of it."""
    tuned = archives[1]
    model, capture = tuned.attributes.model, tuned.attributes.capture
    facts = TwinFacts(
        archive=PurePath(tuned.path).name,
        model=model.id,
        model_name=PurePath(model.id).name,
        state=tuned.attributes.state,
        architecture=model.architecture,
        prompt_format=capture.prompt_format,
        same_tokenizer=_same_tokenizer(archives),
        matched=len(twins),
        only_base=twins.only_base,
        only_tuned=twins.only_tuned,
        different_rows=twins.different_rows,
        different_tokens=twins.different_tokens,
        different_categories=twins.different_categories,
        notes=[],
    )
    return facts.model_copy(update={"notes": [*_archive_notes(archives), *_instruction_notes(facts, archives)]})


def _same_tokenizer(archives: Archives) -> bool | None:
    """None where an archive does not say which tokenizer it was."""
    left, right = (archive.attributes.model.tokenizer_sha256 for archive in archives)
    return left == right if left and right else None


def _archive_notes(archives: Archives) -> list[str]:
    """What differs between the models and their prompts, and whether the tuned archive is whole."""
    said = []
    base, tuned = (archive.attributes for archive in archives)
    if base.model.architecture != tuned.model.architecture:
        said.append(f"The architectures differ: {base.model.architecture} (base), {tuned.model.architecture} (tuned).")
    if _same_tokenizer(archives) is False:
        said.append("The models have different tokenizers.")
    if base.capture.prompt_format != tuned.capture.prompt_format:
        formats = f"{base.capture.prompt_format} (base), {tuned.capture.prompt_format} (tuned)"
        said.append(f"The prompts were formatted differently: {formats}.")
    if base.capture.add_special_tokens != tuned.capture.add_special_tokens:
        said.append("Special tokens were added to the prompts of one of the models alone.")
    table = archives[1].instructions
    complete = f"{len(table.complete):,} of its {len(table):,} instructions are complete"
    if tuned.state == "open":
        said.append(f"The extraction of the tuned archive had not ended when it was read: {complete}.")
    elif len(table.complete) < len(table):
        said.append(f"The tuned archive is not whole: {complete}.")
    return said


def _instruction_notes(facts: TwinFacts, archives: Archives) -> list[str]:
    """What differs between the matched instructions."""
    said = []
    if facts.different_tokens is None:
        counts = any(archive.granularity == "count" for archive in archives)
        why = ": archives of counts hold no token ids" if counts else ""
        said.append(f"Whether both models read the same tokens is not known{why}.")
    if tokens := tokens_sentence(facts).strip():
        said.append(tokens)
    if facts.different_categories:
        said.append(
            f"{facts.different_categories:,} of the {facts.matched:,} instructions have another category in the tuned "
            "archive; the base archive's categories are used."
        )
    return said
