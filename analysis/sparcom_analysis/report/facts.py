"""Root attributes of a run: inputs, settings, counts and warnings."""

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
LARGE_FRACTION = 1 / 5  # of counted tokens. At 27 %, similarity between categories was 0.59, and 0.49 for content alone
MAX_NAMED = 3  # instructions and layers listed in a sentence
LIBRARIES = ("sparcom", "numpy", "numba", "zarr", "xarray")


def run_facts(
    archives: Sequence[Archive],
    isns: Mapping[Any, Sequence[IsnSets]],
    options: Options,
    comparison: IsnComparison | None = None,
) -> dict[str, Any]:
    """Return the root attributes: serializable as JSON, without local paths.

    Args:
        archives: the base model's archive, then the tuned model's if there is one.
        isns: ISN sets of each model by population, main population first.
        options: options of the analysis. comparison: base against tuned, if there are two models.

    Returns:
        `format_version`; `archive` and, with two models, `tuned`: model and extraction; `settings`: all options, with
        `rule` and the counted `positions`; `versions`; `instructions`: number used by category, and reasons for leaving
        others out; `categories` with a used instruction, in order of first appearance; `populations` of neurons;
        `comparison`: matched instructions, and notes on differences other than tuning; `warnings`: sentences to read
        before the numbers.
    """
    first = next(iter(isns.values()))[0]
    found: dict[str, Any] = {"format_version": FORMAT_VERSION}
    found |= {name: archive_facts(archive) for name, archive in zip(("archive", "tuned"), archives, strict=False)}
    if comparison is not None:
        counts = ("only_base", "only_tuned", "different_lengths", "different_tokens", "different_categories")
        found["comparison"] = {"matched": len(comparison.matched), "notes": matched_notes(comparison)}
        found["comparison"] |= {name: getattr(comparison.matched, name) for name in counts}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
    parts = [sides[0].population for sides in isns.values()]
    return found | {
        "settings": settings | {"positions": first.positions, "rule": options.rule},
        "versions": {name: version(name) for name in LIBRARIES},
        "instructions": instruction_facts(first),
        "categories": first.labels,
        "populations": [
            {"population": part.name, "title": part.title, "layer_ids": list(map(int, part.layer_ids))}
            | {"experts": part.experts, "neurons": part.neurons}
            for part in parts
        ],
        "warnings": list(_warnings(archives, isns)),
    }


def archive_facts(archive: Archive) -> dict[str, Any]:
    """Return the facts about an archive's model and extraction."""
    attributes = archive.attributes
    model, dataset = attributes.model, attributes.dataset
    of_model = ("revision", "architecture", "dtype", "quantization", "activation")
    of_capture = ("predicate", "granularity", "positions", "prompt_format")
    named = (attributes, ("format_version", "created", "state")), (model, of_model), (attributes.capture, of_capture)
    found: dict[str, Any] = {"name": PurePath(archive.path).name, "model": model.id}
    found |= {"model_name": PurePath(model.id).name, "layers": len(model.layer_ids), "neurons": archive.neurons}
    found |= {name: getattr(part, name) for part, names in named for name in names}
    found |= {"dataset": dataset.name, "dataset_sha256": dataset.sha256, "vllm": attributes.engine.vllm}
    return found if model.moe is None else found | {"moe": model.moe.model_dump(mode="json")}


def instruction_facts(isn: IsnSets) -> dict[str, Any]:
    """Return the number of instructions used, by category, and the number left out, by reason."""
    table, tokens = isn.archive.instructions, isn.token_facts
    states = describe_states(table.state)
    return {
        "total": len(table),
        "used": len(isn),
        "tokens": int(isn.tokens.sum()),
        "left_out": {
            **{state: states[state] for state in ("pending", "failed", "cancelled")},
            "without_rows": isn.without_rows,
            "unknown_origin": tokens.unknown_origin,
        },
        "special_token_ids": list(tokens.special_ids),
        "special_rows": tokens.special_rows,
        "template_rows": tokens.template_rows,
        "origins": prompt_origins(isn.archive, isn.instruction),
        "by_category": list(_by_category(table.category, isn)),
    }


def _by_category(categories: Sequence[str], isn: IsnSets) -> Iterator[dict[str, Any]]:
    """Yield one entry per category of the archive, including categories without a used instruction."""
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
    """Count the prompt tokens of these instructions, int64 (n,), that the chat template or the tokenizer wrote.

    Instructions of unknown origin are left out. Returns None if all are unknown.
    """
    if not archive.knows_origins:
        return None
    lengths = [archive.column(f"{name}_length")[instructions].astype(np.int64) for name in ("template", "special")]
    known = (lengths[0] >= 0) & (lengths[1] >= 0)
    prompt = int(archive.instructions.prompt_length[instructions][known].sum(dtype=np.int64))
    template, special = (int(held[known].sum()) for held in lengths)
    share = (template + special) / max(prompt, 1)
    return {"prompt": prompt, "template": template, "special": special, "share": share} if prompt else None


def _warnings(archives: Sequence[Archive], isns: Mapping[Any, Sequence[IsnSets]]) -> Iterator[str]:
    """Yield the sentences to read before the numbers; the base archive comes first."""
    base = next(iter(isns.values()))[0]
    facts = base.token_facts
    titles = ("base archive", "tuned archive") if len(archives) > 1 else ("archive",)
    for archive, title in zip(archives, titles, strict=True):
        yield from (f"The extraction of the {title} warned: {text}." for text in archive.attributes.warnings)
        if facts.counted_tokens == "all" and base.positions != "response":
            yield from _template(archive, title, base, facts.special_rows if archive is archives[0] else 0)
    if facts.unknown_origin:
        yield f"{facts.unknown_origin:,} instructions are left out because the origin of their tokens is unknown."
    for side, title in enumerate(titles):
        for sides in isns.values():
            yield from _dead(sides[side], title)


def _template(archive: Archive, title: str, base: IsnSets, special_rows: int) -> Iterator[str]:
    """Yield a warning if the template and the tokenizer wrote more than `LARGE_FRACTION` of the counted tokens."""
    spans = row_spans(archive, base.positions)
    origins = prompt_origins(archive, spans.instruction)
    if origins is None:
        if archive.attributes.capture.prompt_format == "chat":
            yield (
                f"The {title} does not record which tokens its chat template wrote. These tokens are the same in every "
                "prompt and make categories more similar. To leave them out, extract again and use --tokens content."
            )
        return
    counted, written = int(spans.lengths.sum()) - special_rows, origins["template"] + origins["special"]
    if written - special_rows > LARGE_FRACTION * counted:
        again = "Extract again with granularity 'token', and use" if archive.granularity == "count" else "Use"
        yield (
            f"The chat template or the tokenizer wrote {100 * origins['share']:.0f} % of the prompt tokens of the "
            f"{title} ({written:,} of {origins['prompt']:,}). These tokens are nearly the same in every prompt and "
            f"make categories more similar. {again} --tokens content to leave them out."
        )


def _dead(isn: IsnSets, title: str) -> Iterator[str]:
    """Yield a warning if an instruction has a layer without any active neuron."""
    dead = np.flatnonzero(isn.dead_layers.any(axis=1))
    if not dead.size:
        return
    named = []
    for k in dead[:MAX_NAMED]:
        layers = [str(isn.layer_ids[j]) for j in np.flatnonzero(isn.dead_layers[k])]
        more = ", …" if len(layers) > MAX_NAMED else ""
        named.append(f"{isn.ids[k]!r} (layer {', '.join(layers[:MAX_NAMED])}{more})")
    more = f" and {dead.size - MAX_NAMED:,} more" if dead.size > MAX_NAMED else ""
    have = "instruction has" if dead.size == 1 else "instructions have"
    yield (
        f"{dead.size:,} {have} a layer without any active neuron in the {title}, {TITLES[isn.population.name]}: "
        f"{', '.join(named)}{more}. Non-finite gates can cause this. Run `sparcom verify`, and extract again with "
        "another dtype if the model overflows."
    )
