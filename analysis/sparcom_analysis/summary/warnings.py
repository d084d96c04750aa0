"""Writes the sentences that a reader must know before the numbers: prompts, tokens of the template, dead layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.reading.rows import row_spans
from sparcom_analysis.results import DeadLayers, Results
from sparcom_analysis.schema.metrics import PromptOrigins
from sparcom_data.archive import Archive

LARGE_SHARE = (
    1 / 5
)  # of the counted tokens. Measured at 27 %: mean similarity between categories 0.59, content alone 0.49
NAMED = 3  # instructions that a sentence gives


def warning_sentences(results: Results) -> list[str]:
    """All warnings, those of the base archive first."""
    facts, found = results.neurons[0].neurons.token_facts, []
    for archive, whose in ((results.archive, "archive"), (results.tuned, "tuned archive")):
        if archive is None:
            continue
        found += [f"The extraction of the {whose} warned: {said}." for said in archive.attributes.warnings]
        if facts.counted_tokens == "all":
            found += _template(archive, whose, results, facts.special_rows if whose == "archive" else 0)
    if facts.unknown_origin:
        found.append(
            f"{facts.unknown_origin:,} instructions are left out, since where their tokens come from is unknown."
        )
    return [*found, *(said for one in results.dead for said in _dead(one))]


def prompt_origins(archive: Archive, instructions: NDArray[np.int64]) -> PromptOrigins | None:
    """Who wrote the prompt tokens of these instructions, int64 (n,); None where nothing is known of any."""
    if not archive.knows_origins:
        return None
    template, special = (archive.column(f"{name}_length")[instructions] for name in ("template", "special"))
    known = (template >= 0) & (special >= 0)
    prompt = int(archive.instructions.prompt_length[instructions][known].sum(dtype=np.int64))
    if not prompt:
        return None
    both = [int(lengths[known].sum(dtype=np.int64)) for lengths in (template, special)]
    return PromptOrigins(prompt=prompt, template=both[0], special=both[1], share=sum(both) / prompt)


def _template(archive: Archive, whose: str, results: Results, special_rows: int) -> Iterator[str]:
    """How much of what counts the template and the tokenizer wrote, where it is much. special_rows: left out."""
    rows = results.neurons[0].neurons.rows
    if rows == "response":
        return
    spans = row_spans(archive, rows)
    part = prompt_origins(archive, spans.instruction)
    if part is None:
        if archive.attributes.capture.prompt_format == "chat":
            yield (
                f"The {whose} does not say which tokens its chat template wrote. They are the same in every prompt and "
                "make categories look more alike. Extract again to be able to leave them out with --tokens content."
            )
        return
    counted, written = int(spans.lengths.sum()) - special_rows, part.template + part.special
    if written - special_rows > LARGE_SHARE * counted:
        again = "Extract again with granularity 'token', and use" if archive.granularity == "count" else "Use"
        yield (
            f"{part.share:.0%} of the prompt tokens of the {whose} ({written:,} of {part.prompt:,}) were written by "
            "the chat template or the tokenizer. They are nearly the same in every prompt and make categories look "
            f"more alike. {again} --tokens content to leave them out."
        )


def _dead(one: DeadLayers) -> Iterator[str]:
    """Which instructions have a layer without any active neuron."""
    if not one.instructions:
        return
    named = [f"{name!r} (layer {_listed(layers)})" for name, layers in zip(one.instructions, one.layers, strict=True)]
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    have = "instruction has" if len(named) == 1 else "instructions have"
    yield (
        f"{len(named):,} {have} a layer without any active neuron in the {one.archive} archive, "
        f"{TITLES[one.component]}: {', '.join(named[:NAMED])}{more}. Gates that are not finite look like this. Run "
        "`sparcom verify`, and extract again with another dtype if the model overflows."
    )


def _listed(layers: Sequence[int]) -> str:
    """The first layers."""
    return ", ".join(map(str, layers[:NAMED])) + (", …" if len(layers) > NAMED else "")
