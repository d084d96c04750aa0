"""Says in a sentence what each figure about experts shows for this model, computed from the metrics alone.

Statements of what was measured; nothing here tests significance.
"""

from __future__ import annotations

from sparcom_analysis.findings.ties import End, all_tie, largest, pair_ends, smallest
from sparcom_analysis.schema.metrics import Metrics


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def frequency_sentence(metrics: Metrics) -> str:
    """How unevenly the routers choose."""
    part = metrics.expert_frequency
    assert part is not None  # noqa: S101  (asked for experts alone)
    cells = [(f, j, e) for j, row in zip(part.layer_ids, part.overall, strict=True) for e, f in enumerate(row)]
    most = largest([(f, f"expert {e} of layer {j}") for f, j, e in cells])
    even, never = part.experts_per_token / part.experts, sum(f == 0 for f, *_ in cells)
    text = (
        f"In {metrics.archive.model_name}, a token chooses {part.experts_per_token} of {part.experts} experts in a "
        f"layer; chosen evenly, each would be at {even:.1%} of the tokens. {_most_chosen(most)}"
    )
    peaks = [
        (f, f"expert {e} of layer {j}, for {name}")
        for name, layers in zip(part.categories, part.mean, strict=True)
        for j, row in zip(part.layer_ids, layers, strict=True)
        for e, f in enumerate(row)
    ]
    if len(part.categories) > 1:
        peak = largest(peaks)
        if peak.single:
            text += f" Within one category it is {peak.names[0]} at {peak.value:.1%}."
    if never:
        text += f" {never:,} of {len(cells):,} experts are chosen at no token at all."
    return text


def _most_chosen(most: End) -> str:
    if most.single:
        return f"The most chosen one is {most.names[0]}, at {most.value:.1%}, mean over instructions."
    return f"{len(most.names):,} are chosen most, each at {most.value:.1%}, mean over instructions."


def correlation_sentence(metrics: Metrics) -> str:
    """How alike categories are in their experts."""
    part = metrics.ise_correlation_without_self
    assert part is not None  # noqa: S101  (asked for experts alone)
    pairs = [
        (value, i, j)
        for i, row in enumerate(part.matrix)
        for j, value in enumerate(row)
        if value is not None and i <= j
    ]
    within, between = [c for c in pairs if c[1] == c[2]], [c for c in pairs if c[1] < c[2]]
    said = [
        f"{what} at {_mean([cell[0] for cell in cells]):.3f}"
        for cells, what in ((within, "of the same category"), (between, "of two different categories"))
        if cells
    ]
    if not said:
        text = f"In {metrics.archive.model_name}, no two instructions have a correlation of expert frequencies."
    else:
        text = (
            f"In {metrics.archive.model_name}, the expert frequencies of two different instructions correlate, "
            f"{', those '.join(said)} (Pearson, mean over categories)."
        )
    text += pair_ends([(cell[0], f"{part.categories[cell[1]]} and {part.categories[cell[2]]}") for cell in between])
    if within and not metrics.settings.exclude_self_pairs:
        text += " The diagonal of the figure counts each instruction with itself as well."
    if part.undefined_instructions:
        text += (
            f" {part.undefined_instructions:,} instructions choose every expert equally often; for them no correlation "
            "is defined, and they are in no mean."
        )
    return text


def share_sentence(metrics: Metrics) -> str:
    """How much of the routing the most chosen experts take."""
    part, frequency = metrics.top_experts, metrics.expert_frequency
    assert part is not None and frequency is not None  # noqa: PT018, S101  (asked for experts alone)
    means = [_mean(list(column)) for column in zip(*part.share, strict=True)]
    count = len(part.overall_expert[0])
    return (
        f"A category's {count} most chosen experts of a layer take {_mean(means):.1%} of its choices, mean over "
        f"categories and layers (chosen evenly: {count / frequency.experts:.1%}){_layer_ends(means, part.layer_ids)}."
    )


def _layer_ends(means: list[float], layer_ids: list[int]) -> str:
    """In which layers a share is largest and smallest; empty of one layer."""
    valued = [(value, str(layer)) for value, layer in zip(means, layer_ids, strict=True)]
    if len(valued) < 2:
        return ""
    if all_tie(valued):
        return ", the same in every layer"
    high, low = largest(valued), smallest(valued)
    return f"; most in {high.layers} ({high.value:.1%}), least in {low.layers} ({low.value:.1%})"


def shift_sentence(metrics: Metrics) -> str:
    """What tuning shifts; empty without a tuned model."""
    part = metrics.expert_shift
    if part is None:
        return ""
    means = [_mean(list(column)) for column in zip(*part.moved, strict=True)]
    valued = [(value, str(layer)) for value, layer in zip(means, part.layer_ids, strict=True)]
    most = largest(valued)
    where = "" if all_tie(valued) else f", most in {most.layers} ({most.value:.3f})"
    kept = [kept for layers in part.top_kept for ranks in layers for kept in ranks]
    text = (
        f"Over the {part.matched:,} instructions of both, {_tuned_name(metrics)} moves {_mean(means):.3f} of a "
        "token’s choices in a layer to other experts (mean over categories and layers, mean frequencies compared)"
        f"{where}. Of the most chosen experts {sum(kept) / len(kept):.0%} stay among the most chosen."
    )
    if part.different_rows:
        text += f" {part.different_rows:,} of these instructions have another number of tokens in the tuned archive."
    return text


def _tuned_name(metrics: Metrics) -> str:
    """The last part of the tuned model's id, as of the base's."""
    part = metrics.expert_shift
    assert part is not None  # noqa: S101  (asked for it alone)
    return part.tuned_model.rstrip("/").rsplit("/", 1)[-1]
