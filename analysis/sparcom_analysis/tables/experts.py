"""The results about experts as tables: one row a value where there are three axes."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.tables.formats import Cell, Table
from sparcom_analysis.tables.intervals import without_empty_ends
from sparcom_analysis.tables.neurons import cells_table, matrix_table

Map = Sequence[Sequence[float | None]]
Maps = Sequence[Map]

ALL = "(all)"
CORRELATION = "Similarity of categories in their experts, equation 14"
WITH_SELF = "Mean Pearson correlation of expert frequencies; pairs of an instruction with itself counted."
WITHOUT_SELF = "Mean Pearson correlation of expert frequencies; pairs of an instruction with itself left out."


def expert_tables(metrics: Metrics) -> list[Table]:
    """Every table about experts but those of a tuned twin's alteration."""
    with_self, without_self = metrics.ise_correlation, metrics.ise_correlation_without_self
    assert with_self is not None and without_self is not None  # noqa: PT018, S101  (asked for experts alone)
    names = with_self.categories
    found = [
        frequency_table(metrics),
        top_table(metrics),
        matrix_table("ise_correlation", CORRELATION, names, with_self.matrix, WITH_SELF),
        matrix_table("ise_correlation_without_self", CORRELATION, names, without_self.matrix, WITHOUT_SELF),
    ]
    if metrics.intervals is not None:
        title = f"{CORRELATION}, with intervals"
        found.append(cells_table("ise_correlation_intervals", title, (with_self, without_self), "equation 14"))
    return found if metrics.expert_shift is None else [*found, shift_table(metrics)]


def all_label(categories: Sequence[str]) -> str:
    """What rows over all instructions are called: "(all)", or more brackets where a category has that name."""
    name = ALL
    while name in categories:
        name = f"({name})"
    return name


def frequency_table(metrics: Metrics) -> Table:
    """One row a category, layer and expert: mean f. Rows over all instructions come last."""
    part = metrics.expert_frequency
    assert part is not None  # noqa: S101  (asked for experts alone)
    values = [*part.mean, part.overall]
    low, high = _or_none(values, part.mean_low, part.overall_low), _or_none(values, part.mean_high, part.overall_high)
    groups = zip([*part.categories, all_label(part.categories)], values, low, high, strict=True)
    rows: list[list[Cell]] = [
        [name, layer, expert, *cells]
        for name, *maps in groups
        for layer, *lists in zip(part.layer_ids, *maps, strict=True)
        for expert, cells in enumerate(zip(*lists, strict=True))
    ]
    columns = ["category", "layer", "expert", "frequency", "low", "high"]
    return without_empty_ends(Table("expert_frequency", "Expert frequencies, equation 12", columns, rows))


def _or_none(values: Maps, ends: Maps | None, overall: Map | None) -> Maps:
    """One end of each value, those over all instructions last; None everywhere without intervals."""
    if ends is None or overall is None:
        return [[[None] * len(row) for row in layers] for layers in values]
    return [*ends, overall]


def top_table(metrics: Metrics) -> Table:
    """Table 6, one row a category, layer and rank; with a tuned model see `shift_table` too."""
    part = metrics.top_experts
    assert part is not None  # noqa: S101  (asked for experts alone)
    names = [*part.categories, all_label(part.categories)]
    values = [*part.frequency, part.overall_frequency]
    low = _or_none(values, part.frequency_low, part.overall_frequency_low)
    high = _or_none(values, part.frequency_high, part.overall_frequency_high)
    groups = zip(names, [*part.expert, part.overall_expert], values, low, high, strict=True)
    rows: list[list[Cell]] = [
        [name, layer, rank, *cells]
        for name, experts, *maps in groups
        for layer, ids, *lists in zip(part.layer_ids, experts, *maps, strict=True)
        for rank, cells in enumerate(zip(ids, *lists, strict=True), start=1)
    ]
    columns = ["category", "layer", "rank", "expert", "frequency", "low", "high"]
    return without_empty_ends(Table("top_experts", "The most chosen experts, table 6", columns, rows))


def shift_table(metrics: Metrics) -> Table:
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
    rows: list[list[Cell]] = [
        [name, layer, expert, before, after, after - before, _rank(tops[0], expert), _rank(tops[1], expert)]
        for name, base, tuned, top_base, top_tuned in groups
        for layer, left, right, *tops in zip(part.layer_ids, base, tuned, top_base, top_tuned, strict=True)
        for expert, (before, after) in enumerate(zip(left, right, strict=True))
    ]
    columns = ["category", "layer", "expert", "base", "tuned", "shift", "rank_base", "rank_tuned"]
    return Table("expert_shift", "Expert frequencies before and after tuning", columns, rows)


def _rank(experts: Sequence[int], expert: int) -> int | None:
    return experts.index(expert) + 1 if expert in experts else None
