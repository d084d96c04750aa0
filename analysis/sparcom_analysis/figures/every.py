"""Every figure of an analysis, by the name of its file. Figures of a further component end in -COMPONENT."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from sparcom_analysis.figures import alteration as altered
from sparcom_analysis.figures import experts as expert_figures
from sparcom_analysis.figures import neurons as figures
from sparcom_analysis.figures.components import component_figure, lape_figure
from sparcom_analysis.figures.length import matched_figure, size_figure
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.tables.every import ending_of


def every_figure(metrics: Metrics, views: Mapping[str, Metrics], results: Results) -> dict[str, Figure]:
    """All figures.

    Args:
        views: the metrics with each component's parts in front, by the ending of its files' names.
    """
    found: dict[str, Figure] = {}
    for ending, view in views.items():
        found |= {f"{name}{ending}": figure for name, figure in (_component(view) | _altered(view)).items()}
    if metrics.expert_frequency is not None:
        found |= expert_figures.all_figures(metrics)
    return found | _general(metrics) | _matched(metrics, results)


def _component(view: Metrics) -> dict[str, Figure]:
    name, counted = view.archive.model_name, not view.settings.exclude_self_pairs
    detail = "" if view.component is None else f"neurons of {TITLES[view.component]}"
    return {
        "isn_similarity": figures.similarity_figure(view.shown_similarity, name, self_pairs=counted, detail=detail),
        "isn_by_layer": figures.layer_figure(view.isn_by_layer, name, detail=detail),
    }


def _altered(view: Metrics) -> dict[str, Figure]:
    part, venn, base = view.isn_alteration, view.isn_venn, view.archive.model_name
    if part is None or venn is None:
        return {}
    return {
        "isn_by_layer_tuned": altered.layer_pair_figure(part, base),
        "isn_alteration_by_layer": altered.layer_alteration_figure(part, base),
        "isn_venn": altered.venn_figure(venn, base),
    }


def _general(metrics: Metrics) -> dict[str, Figure]:
    name, part, selected = metrics.archive.model_name, metrics.general_unique, metrics.lape
    found = {} if part is None else {f"general_unique-{g.component}": component_figure(g, name) for g in part.groups}
    lape = {} if selected is None else {f"lape-{g.component}": lape_figure(g, name) for g in selected.groups}
    return found | lape


def _matched(metrics: Metrics, results: Results) -> dict[str, Figure]:
    part, control = metrics.length_matched, results.control
    if part is None or control is None:
        return {}
    found, model = {}, figures.label(metrics.archive.model_name)
    for one, measured in zip(part.components, control.neurons, strict=True):
        shown = one.isn_similarity_without_self if metrics.settings.exclude_self_pairs else one.isn_similarity
        title = f"Similarity of categories with T matched, {model} ({TITLES[one.component]})"
        ending = ending_of(metrics, one.component)
        found[f"length_matched{ending}"] = matched_figure(part, shown, title, "mean Jaccard index of ISN sets")
        found[f"set_size_by_length{ending}"] = size_figure(measured, metrics.archive.model_name)
    routed = part.ise_correlation_without_self if metrics.settings.exclude_self_pairs else part.ise_correlation
    if routed is not None:
        title, what = f"Similarity of categories in their experts with T matched, {model}", "mean Pearson correlation"
        found["length_matched-ise"] = matched_figure(part, routed, title, f"{what} of expert frequencies")
    return found
