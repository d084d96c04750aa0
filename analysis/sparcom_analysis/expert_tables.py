"""The results about experts as CSV text: one function a table, one row a value where there are three axes."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.schema import Metrics
from sparcom_analysis.tables import csv_text

ALL = "(all)"


def all_tables(metrics: Metrics) -> dict[str, str]:
    """Every table about experts, by the name of its file."""
    correlation = metrics.ise_correlation
    assert correlation is not None  # noqa: S101  (asked for experts alone)
    named = zip(correlation.categories, correlation.matrix, strict=True)
    return {
        "expert_frequency": frequency_table(metrics),
        "top_experts": top_table(metrics),
        "ise_correlation": csv_text(["category", *correlation.categories], ([name, *row] for name, row in named)),
        **({} if metrics.expert_shift is None else {"expert_shift": shift_table(metrics)}),
    }


def all_label(categories: Sequence[str]) -> str:
    """What rows over all instructions are called: "(all)", or more brackets where a category has that name."""
    name = ALL
    while name in categories:
        name = f"({name})"
    return name


def frequency_table(metrics: Metrics) -> str:
    """One row a category, layer and expert: mean f. Rows over all instructions come last."""
    part = metrics.expert_frequency
    assert part is not None  # noqa: S101  (asked for experts alone)
    groups = zip([*part.categories, all_label(part.categories)], [*part.mean, part.overall], strict=True)
    rows = (
        [name, layer, expert, value]
        for name, layers in groups
        for layer, values in zip(part.layer_ids, layers, strict=True)
        for expert, value in enumerate(values)
    )
    return csv_text(["category", "layer", "expert", "frequency"], rows)


def top_table(metrics: Metrics) -> str:
    """Table 6, one row a category, layer and rank; with a tuned model see `shift_table` too."""
    part = metrics.top_experts
    assert part is not None  # noqa: S101  (asked for experts alone)
    names = [*part.categories, all_label(part.categories)]
    groups = zip(names, [*part.expert, part.overall_expert], [*part.frequency, part.overall_frequency], strict=True)
    rows = (
        [name, layer, rank, expert, frequency]
        for name, experts, frequencies in groups
        for layer, ids, values in zip(part.layer_ids, experts, frequencies, strict=True)
        for rank, (expert, frequency) in enumerate(zip(ids, values, strict=True), start=1)
    )
    return csv_text(["category", "layer", "rank", "expert", "frequency"], rows)


def shift_table(metrics: Metrics) -> str:
    """One row a category, layer and expert: mean f of both models over the instructions of both, the shift, and the
    expert's rank among the most chosen of each (empty where it is not among them)."""
    part = metrics.expert_shift
    assert part is not None  # noqa: S101  (asked for it)
    groups = zip(
        [*part.categories, all_label(part.categories)],
        [*part.base, part.overall_base],
        [*part.tuned, part.overall_tuned],
        [*part.top_base, part.overall_top_base],
        [*part.top_tuned, part.overall_top_tuned],
        strict=True,
    )
    rows = (
        [name, layer, expert, before, after, after - before, _rank(tops[0], expert), _rank(tops[1], expert)]
        for name, base, tuned, top_base, top_tuned in groups
        for layer, left, right, *tops in zip(part.layer_ids, base, tuned, top_base, top_tuned, strict=True)
        for expert, (before, after) in enumerate(zip(left, right, strict=True))
    )
    return csv_text(["category", "layer", "expert", "base", "tuned", "shift", "rank_base", "rank_tuned"], rows)


def _rank(experts: Sequence[int], expert: int) -> int | None:
    return experts.index(expert) + 1 if expert in experts else None
