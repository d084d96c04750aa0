"""Every table of an analysis, by the name of its file. Tables of a further component end in -COMPONENT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.summary.length import length_table
from sparcom_analysis.tables import alteration as altered
from sparcom_analysis.tables.chance import category_tests_table, pair_tests_table
from sparcom_analysis.tables.components import component_layer_table, component_share_table, lape_table
from sparcom_analysis.tables.experts import expert_tables
from sparcom_analysis.tables.formats import Table
from sparcom_analysis.tables.neurons import component_tables


def every_table(metrics: Metrics, views: Mapping[str, Metrics], results: Results) -> dict[str, Table]:
    """All tables.

    Args:
        views: the metrics with each component's parts in front, by the ending of its files' names.
    """
    found: list[Table] = []
    for (ending, view), result in zip(views.items(), results.neurons, strict=True):
        own = [*component_tables(view, result.neurons), *_altered(view)]
        found += [replace(table, name=f"{table.name}{ending}") for table in own]
    if metrics.expert_frequency is not None:
        found += expert_tables(metrics)
    found += [*_experts_altered(metrics), *_general(metrics), *_matched(metrics), *_tests(metrics)]
    return {table.name: table for table in found}


def _altered(view: Metrics) -> list[Table]:
    part, venn, base = view.isn_alteration, view.isn_venn, view.archive.model_name
    if part is None or venn is None:
        return []
    return [
        altered.isn_alteration_table(part, base),
        altered.layer_alteration_table(part, base),
        altered.venn_table(venn, base),
    ]


def _experts_altered(metrics: Metrics) -> list[Table]:
    part, shift, base = metrics.ise_alteration, metrics.expert_shift, metrics.archive.model_name
    found = [] if part is None else [altered.ise_alteration_table(part, base)]
    return found if shift is None else [*found, altered.kept_experts_table(shift, base)]


def _general(metrics: Metrics) -> list[Table]:
    part, selected = metrics.general_unique, metrics.lape
    found = [] if part is None else [component_share_table(part), *map(component_layer_table, part.groups)]
    return found if selected is None else [*found, lape_table(selected)]


def _matched(metrics: Metrics) -> list[Table]:
    part = metrics.length_matched
    if part is None:
        return []
    found = []
    for one in part.components:
        name, title = f"length_matched{ending_of(metrics, one.component)}", "Similarity of categories with T matched"
        found.append(length_table(part, one.isn_similarity, name, title))
        without = f"{title}, pairs of an instruction with itself left out"
        name = f"length_matched_without_self{ending_of(metrics, one.component)}"
        found.append(length_table(part, one.isn_similarity_without_self, name, without))
    if part.ise_correlation is not None and part.ise_correlation_without_self is not None:
        title = "Correlation of expert frequencies with T matched"
        found.append(length_table(part, part.ise_correlation, "length_matched-ise", title))
        name, without = "length_matched_without_self-ise", f"{title}, pairs of an instruction with itself left out"
        found.append(length_table(part, part.ise_correlation_without_self, name, without))
    return found


def _tests(metrics: Metrics) -> list[Table]:
    part = metrics.tests
    found: list[Table] = []
    for one in [] if part is None else part.matrices:
        assert part is not None  # noqa: S101  (there are matrices)
        if one.component is None:
            assert metrics.ise_correlation_without_self is not None  # noqa: S101  (it was tested)
            ending, tested = "", metrics.ise_correlation_without_self.matrix
        else:
            own = metrics if metrics.components is None else metrics.of(one.component)
            ending, tested = ending_of(metrics, one.component), own.isn_similarity_without_self.matrix
        found += [category_tests_table(part, one, ending), pair_tests_table(part, one, tested, ending)]
    return found


def ending_of(metrics: Metrics, component: str) -> str:
    """How names of a component's files end: not at all for the one that the archive is about."""
    return "" if metrics.component in (None, component) else f"-{component}"
