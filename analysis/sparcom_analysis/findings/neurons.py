"""Says in a sentence what each figure shows for this model, computed from the metrics alone.

Statements of what was measured; nothing here tests significance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sparcom_analysis.findings.ties import all_tie, largest, pair_ends, smallest
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
    text += pair_ends([(value, f"{one} and {other}") for value, one, other in between])
    text += _most_within([(value, name) for value, name, _ in within])
    if within and not metrics.settings.exclude_self_pairs:
        text += " The diagonal of the figure counts each instruction with itself as well."
    return text


def _most_within(within: list[tuple[float, str]]) -> str:
    """In which categories instructions resemble each other most and least."""
    if len(within) < 2:
        return ""
    if all_tie(within):
        return f" Instructions resemble each other equally within all categories ({within[0][0]:.3f})."
    high, low = largest(within), smallest(within)
    return (
        f" Instructions resemble each other most within {high.named('categories')} ({high.value:.3f}), least within "
        f"{low.named('categories')} ({low.value:.3f})."
    )


def layer_sentence(metrics: Metrics) -> str:
    """What figure 5 shows: where the ISNs lie and where categories differ."""
    part = metrics.isn_by_layer
    mean = [_mean(column) for column in zip(*part.mean_count, strict=True)]
    total, width = sum(mean), metrics.layer_width
    if not total:
        return f"No instruction has an ISN in any layer of {metrics.subject} with these settings."
    top = largest([(value, str(layer)) for value, layer in zip(mean, part.layer_ids, strict=True)])
    held = f"{top.value:,.1f} of {{}} {width:,} neurons ({top.value / width:.1%}), mean over categories."
    if len(mean) == 1:
        text = f"In {metrics.subject}, the one layer holds {held.format('its')}"
    elif top.single:
        text = f"In {metrics.subject}, layer {top.names[0]} holds the most ISNs of an instruction: {held.format('its')}"
    else:
        text = f"In {metrics.subject}, {top.layers} hold the most ISNs of an instruction: each {held.format('its')}"
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
    spread = largest([(max(column) - min(column), str(place)) for place, column in enumerate(columns)])
    column = list(zip(columns[int(spread.names[0])], part.categories, strict=True))
    if all_tie(column):
        return " The categories do not differ in any layer."
    high, low = largest(column), smallest(column)
    ends = f"from {low.value:,.1f} ({low.named('categories')}) to {high.value:,.1f} ({high.named('categories')})"
    if len(columns) == 1:
        return f" Categories differ, {ends}."
    layer = part.layer_ids[int(spread.names[0])]
    if not spread.single:
        return f" Categories differ most in {len(spread.names)} layers, in layer {layer} {ends}."
    return f" Categories differ most in layer {layer}, {ends}."


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
        have = "instruction has" if size.empty == 1 else "instructions have"
        text += f" {size.empty:,} {have} no ISN at all; the similarity to any other is 0."
    return text


def length_sentence(metrics: Metrics) -> str:
    """How far the categories differ in length, which the measures do not correct for; empty with one category."""
    lengths = [(item.mean_tokens, item.category) for item in metrics.instructions.by_category if item.mean_tokens]
    if len(lengths) < 2:
        return ""
    if all_tie(lengths):
        return f"Here the mean length is the same in all categories, {lengths[0][0]:,.1f} tokens."
    low, high = smallest(lengths), largest(lengths)
    ends = f"from {low.value:,.1f} tokens ({low.named('categories')}) to {high.value:,.1f} ({high.named('categories')})"
    return f"Here the mean length goes {ends}, {high.value / low.value:.1f} times as many."
