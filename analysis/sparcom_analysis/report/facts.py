"""What was read and how: the attributes of the root of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.archive.populations import TITLES
from sparcom_analysis.archive.rows import row_spans
from sparcom_analysis.compare import IsnComparison, matched_notes
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive
from sparcom_data.describe import describe_states

FORMAT_VERSION = 3
LARGE_SHARE = 1 / 5  # of counted tokens. Measured at 27 %: similarity between categories 0.59, of content alone 0.49
NAMED = 3  # instructions and layers that a sentence gives
LIBRARIES = ("sparcom", "numpy", "numba", "zarr", "xarray")


def run_facts(
    archives: Sequence[Archive],
    isns: Mapping[Any, Sequence[IsnSets]],
    options: Options,
    comparison: IsnComparison | None = None,
) -> dict[str, Any]:
    """Return the attributes of the root: JSON-able, without local paths.

    Args:
        archives: the base model's, then the tuned model's if there is one.
        isns: the ISN sets of both models by population, the population that the archive is about first.
        options: those of the analysis. comparison: of both models, if there are two.

    Returns:
        `archive` and, with two models, `tuned`: which model and which extraction; `settings`: all options, `rule` and
        counted `positions`; `instructions`: those used, by category, and why others were not; `categories` with a used
        instruction, in order of first appearance; `populations`; `comparison`: instructions matched, and notes on what
        differs besides the tuning; `warnings` that a reader must know first; `versions`; `format_version`.
    """
    first = next(iter(isns.values()))[0]
    found: dict[str, Any] = {"format_version": FORMAT_VERSION, "archive": archive_facts(archives[0])}
    if len(archives) > 1:
        found["tuned"] = archive_facts(archives[1])
    if comparison is not None:
        matched = comparison.matched
        counts = ("only_base", "only_tuned", "different_lengths", "different_tokens", "different_categories")
        found["comparison"] = {"matched": len(matched), "notes": matched_notes(comparison)}
        found["comparison"] |= {name: getattr(matched, name) for name in counts}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
    return found | {
        "settings": settings | {"positions": first.positions, "rule": options.rule},
        "versions": {name: version(name) for name in LIBRARIES},
        "instructions": instruction_facts(first),
        "categories": first.labels,
        "populations": [
            {"population": part.name, "title": part.title, "layer_ids": list(map(int, part.layer_ids))}
            | {"experts": part.experts, "neurons": part.neurons}
            for part in (sides[0].population for sides in isns.values())
        ],
        "warnings": list(_warnings(archives, isns)),
    }


def archive_facts(archive: Archive) -> dict[str, Any]:
    """Return what an archive says of its model and its extraction."""
    attributes = archive.attributes
    model, capture = attributes.model, attributes.capture
    of_model = ("revision", "architecture", "dtype", "quantization", "activation")
    of_capture = ("predicate", "granularity", "positions", "prompt_format")
    found: dict[str, Any] = {"name": PurePath(archive.path).name, "model": model.id}
    found |= {"model_name": PurePath(model.id).name, "layers": len(model.layer_ids), "neurons": archive.neurons}
    found |= {name: getattr(attributes, name) for name in ("format_version", "created", "state")}
    found |= {name: getattr(model, name) for name in of_model} | {name: getattr(capture, name) for name in of_capture}
    found |= {"dataset": attributes.dataset.name, "dataset_sha256": attributes.dataset.sha256}
    found |= {"vllm": attributes.engine.vllm}
    return found if model.moe is None else found | {"moe": model.moe.model_dump(mode="json")}


def instruction_facts(isn: IsnSets) -> dict[str, Any]:
    """Return which instructions of the archive were used, by category, and why the others were not."""
    table, tokens = isn.archive.instructions, isn.token_facts
    states = describe_states(table.state)
    left_out = {state: states[state] for state in ("pending", "failed", "cancelled")}
    left_out |= {"without_rows": isn.without_rows, "unknown_origin": tokens.unknown_origin}
    return {
        "total": len(table),
        "used": len(isn),
        "tokens": int(isn.tokens.sum()),
        "left_out": left_out,
        "special_token_ids": list(tokens.special_ids),
        "special_rows": tokens.special_rows,
        "template_rows": tokens.template_rows,
        "origins": prompt_origins(isn.archive, isn.instruction),
        "by_category": list(_by_category(table.category, isn)),
    }


def _by_category(categories: Sequence[str], isn: IsnSets) -> Iterator[dict[str, Any]]:
    """Yield an entry per category of the archive, those without a used instruction included."""
    codes = category_codes(categories)
    for code, label in enumerate(category_labels(categories)):
        used = codes[isn.instruction] == code
        count, tokens = int(used.sum()), int(isn.tokens[used].sum())
        yield {
            "category": label,
            "instructions": count,
            "left_out": int((codes == code).sum()) - count,
            "tokens": tokens,
            "mean_tokens": tokens / count if count else None,
            "mean_isn": int(isn.sizes[used].sum()) / count if count else None,
        }


def prompt_origins(archive: Archive, instructions: NDArray[np.int64]) -> dict[str, Any] | None:
    """Return how many prompt tokens of these instructions a template or the tokenizer wrote; None if it is unknown."""
    if not archive.knows_origins:
        return None
    template, special = (archive.column(f"{name}_length")[instructions] for name in ("template", "special"))
    known = (template >= 0) & (special >= 0)
    prompt = int(archive.instructions.prompt_length[instructions][known].sum(dtype=np.int64))
    if not prompt:
        return None
    both = [int(lengths[known].sum(dtype=np.int64)) for lengths in (template, special)]
    return {"prompt": prompt, "template": both[0], "special": both[1], "share": sum(both) / prompt}


def _warnings(archives: Sequence[Archive], isns: Mapping[Any, Sequence[IsnSets]]) -> Iterator[str]:
    """Yield the sentences that a reader must know before the numbers, those of the base archive first."""
    base = next(iter(isns.values()))[0]
    titles = ("base archive", "tuned archive") if len(archives) > 1 else ("archive",)
    for archive, title in zip(archives, titles, strict=True):
        yield from (f"The extraction of the {title} warned: {text}." for text in archive.attributes.warnings)
        if base.token_facts.counted_tokens == "all" and base.positions != "response":
            yield from _template(archive, title, base, base.token_facts.special_rows if archive is archives[0] else 0)
    if unknown := base.token_facts.unknown_origin:
        yield f"{unknown:,} instructions are left out because the origin of their tokens is unknown."
    for side, title in enumerate(titles):
        for sides in isns.values():
            yield from _dead(sides[side], title)


def _template(archive: Archive, title: str, base: IsnSets, special_rows: int) -> Iterator[str]:
    """Yield a sentence if template and tokenizer wrote much of what counts; `special_rows` tokens were left out."""
    spans = row_spans(archive, base.positions)
    origins = prompt_origins(archive, spans.instruction)
    if origins is None:
        if archive.attributes.capture.prompt_format == "chat":
            yield (
                f"The {title} does not record which tokens its chat template wrote. These tokens are the same in every "
                "prompt and make categories more similar. Extract again to be able to leave them out with --tokens "
                "content."
            )
        return
    counted, written = int(spans.lengths.sum()) - special_rows, origins["template"] + origins["special"]
    if written - special_rows > LARGE_SHARE * counted:
        again = "Extract again with granularity 'token', and use" if archive.granularity == "count" else "Use"
        yield (
            f"The chat template or the tokenizer wrote {origins['share']:.0%} of the prompt tokens of the {title} "
            f"({written:,} of {origins['prompt']:,}). These tokens are nearly the same in every prompt and make "
            f"categories more similar. {again} --tokens content to leave them out."
        )


def _dead(isn: IsnSets, title: str) -> Iterator[str]:
    """Yield a sentence if an instruction has a layer without any active neuron."""
    named = []
    for k in np.flatnonzero(isn.dead_layers.any(axis=1)):
        layers = [str(isn.layer_ids[j]) for j in np.flatnonzero(isn.dead_layers[k])]
        named.append(f"{isn.ids[k]!r} (layer {', '.join(layers[:NAMED])}{', …' if len(layers) > NAMED else ''})")
    if not named:
        return
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    have = "instruction has" if len(named) == 1 else "instructions have"
    yield (
        f"{len(named):,} {have} a layer without any active neuron in the {title}, {TITLES[isn.population.name]}: "
        f"{', '.join(named[:NAMED])}{more}. Gates that are not finite look like this. Run `sparcom verify`, and "
        "extract again with another dtype if the model overflows."
    )
