"""Says in a sentence what each figure shows for this model, computed from the metrics alone.

Statements of what was measured; nothing here tests significance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sparcom_analysis.schema.metrics import Metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cells(metrics: Metrics, *, within: bool) -> list[tuple[float, str, str]]:
    """(similarity, category, category) of the diagonal or of the pairs of two categories, self pairs left out."""
    part = metrics.isn_similarity_without_self
    return [
        (value, part.categories[i], part.categories[j])
        for i, row in enumerate(part.matrix)
        for j, value in enumerate(row)
        if value is not None and (i == j if within else i < j)
    ]


def similarity_sentence(metrics: Metrics) -> str:
    """What figure 3 shows: how alike instructions are within a category and between categories."""
    within, between = _cells(metrics, within=True), _cells(metrics, within=False)
    parts = []
    if within:
        parts.append(
            f"In {metrics.subject}, two different instructions of the same category overlap in their ISNs "
            f"by {_mean([cell[0] for cell in within]):.3f} on average (Jaccard index, mean over categories)"
        )
    if between:
        start = "instructions of two different categories by"
        if not parts:
            start = f"In {metrics.subject}, instructions of two different categories overlap in their ISNs by"
        parts.append(f"{start} {_mean([cell[0] for cell in between]):.3f}")
    text = ", ".join(parts) + "."
    if len(between) > 1:
        high, low = max(between), min(between)
        text += (
            f" The two categories most alike are {high[1]} and {high[2]} ({high[0]:.3f}); "
            f"the two least alike are {low[1]} and {low[2]} ({low[0]:.3f})."
        )
    if len(within) > 1:
        high, low = max(within), min(within)
        text += (
            f" Instructions resemble each other most within {high[1]} ({high[0]:.3f}), least within {low[1]} "
            f"({low[0]:.3f})."
        )
    if within and not metrics.settings.exclude_self_pairs:
        text += " The diagonal of the figure is higher than that: it counts each instruction with itself as well."
    return text


def layer_sentence(metrics: Metrics) -> str:
    """What figure 5 shows: where the ISNs lie and where categories differ."""
    part = metrics.isn_by_layer
    mean = [_mean(column) for column in zip(*part.mean_count, strict=True)]
    total, width = sum(mean), metrics.layer_width
    if not total:
        return f"No instruction has an ISN in any layer of {metrics.subject} with these settings."
    top = max(range(len(mean)), key=mean.__getitem__)
    text = (
        f"In {metrics.subject}, layer {part.layer_ids[top]} holds the most ISNs of an instruction: "
        f"{mean[top]:,.1f} of its {width:,} neurons ({mean[top] / width:.1%}), mean over categories."
    )
    if len(mean) >= 3:
        cuts = [0, len(mean) // 3, len(mean) - len(mean) // 3, len(mean)]
        first, middle, last = (sum(mean[a:b]) / total for a, b in pairwise(cuts))
        sizes = f"{cuts[1]}, {cuts[2] - cuts[1]} and {cuts[3] - cuts[2]}"
        text += (
            f" The lower, middle and upper third of the layers ({sizes} layers) hold {first:.0%}, {middle:.0%} and "
            f"{last:.0%} of them."
        )
    return text + _widest_spread(metrics)


def _widest_spread(metrics: Metrics) -> str:
    part = metrics.isn_by_layer
    if len(part.categories) < 2:
        return ""
    columns = list(zip(*part.mean_count, strict=True))
    widest = max(range(len(columns)), key=lambda layer: max(columns[layer]) - min(columns[layer]))
    high, low = max(columns[widest]), min(columns[widest])
    if high == low:
        return " The categories do not differ in any layer."
    names = [part.categories[columns[widest].index(value)] for value in (high, low)]
    return (
        f" Categories differ most in layer {part.layer_ids[widest]}, from {low:,.1f} ({names[1]}) to {high:,.1f} "
        f"({names[0]})."
    )


def size_sentence(metrics: Metrics) -> str:
    """How large the sets are against what the rule asked for: what ties did."""
    size, total = metrics.isn_size, len(metrics.isn_by_layer.layer_ids) * metrics.layer_width
    held = f"{size.mean:,.1f} on average, from {size.minimum:,} to {size.maximum:,}"
    if size.wanted is None:
        text = f"Of {total:,} neurons, {held}, have p of at least {metrics.settings.threshold}."
    else:
        text = (
            f"ε = {metrics.settings.epsilon} asks for {size.wanted:,} of {total:,} neurons; with all that tie at the "
            f"threshold, sets hold {held} ({size.mean / size.wanted:.2f} times what was asked for)."
        )
    if size.empty:
        text += f" {size.empty:,} instructions have no ISN at all; their similarity to any other is 0."
    return text


def length_sentence(metrics: Metrics) -> str:
    """How far the categories differ in length, which the measures do not correct for; empty with one category."""
    lengths = [(item.mean_tokens, item.category) for item in metrics.instructions.by_category if item.mean_tokens]
    if len(lengths) < 2:
        return ""
    (low, short), (high, long) = min(lengths), max(lengths)
    ends = f"from {low:,.1f} tokens ({short}) to {high:,.1f} ({long})"
    return f"Here the mean length goes {ends}, {high / low:.1f} times as many."
