"""Turns results into the bytes of every file of the output folder: tables, figures, the report, metrics.json.

Files of the component that the archive is about have plain names; those of a further one end in -COMPONENT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparcom_analysis import expert_tables
from sparcom_analysis.populations import TITLES
from sparcom_analysis.report import render_report
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons
from sparcom_analysis.tables import instruction_table, layer_table, similarity_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(metrics: Metrics, sets: Mapping[str, InstructionNeurons]) -> dict[str, bytes]:
    """Every file: its path in the folder and its bytes; metrics.json last.

    Args:
        sets: the ISN sets of each component, the one that the archive is about first.
    """
    from sparcom_analysis import figures

    views = component_views(metrics)
    drawn: dict[str, Figure] = {}
    tables: dict[str, str] = {}
    for (ending, view), neurons in zip(views.items(), sets.values(), strict=True):
        drawn |= {f"{name}{ending}": figure for name, figure in _figures(view).items()}
        tables |= {f"{name}{ending}": text for name, text in _tables(view, neurons).items()}
    if metrics.expert_frequency is not None:
        from sparcom_analysis import expert_figures

        drawn |= expert_figures.all_figures(metrics)
        tables |= expert_tables.all_tables(metrics)
    vector = {name: figures.to_svg(figure) for name, figure in drawn.items()}
    return {
        **{f"tables/{name}.csv": text.encode() for name, text in tables.items()},
        **{f"figures/{name}.svg": data for name, data in vector.items()},
        **{f"figures/{name}.png": figures.to_png(figure) for name, figure in drawn.items()},
        "report.html": render_report(metrics, views, vector).encode(),
        "metrics.json": (metrics.model_dump_json(indent=2) + "\n").encode(),
    }


def component_views(metrics: Metrics) -> dict[str, Metrics]:
    """The metrics with each component's parts in front, by the ending of its files' names; the first as it is."""
    further = [part.component for part in metrics.components or [] if part.component != metrics.component]
    return {"": metrics, **{f"-{component}": metrics.of(component) for component in further}}


def _figures(view: Metrics) -> dict[str, Figure]:
    from sparcom_analysis import figures

    name, counted = view.archive.model_name, not view.settings.exclude_self_pairs
    detail = "" if view.component is None else f"neurons of {TITLES[view.component]}"
    return {
        "isn_similarity": figures.similarity_figure(view.shown_similarity, name, self_pairs=counted, detail=detail),
        "isn_by_layer": figures.layer_figure(view.isn_by_layer, name, detail=detail),
    }


def _tables(view: Metrics, neurons: InstructionNeurons) -> dict[str, str]:
    return {
        "isn_similarity": similarity_table(view.isn_similarity),
        "isn_similarity_without_self": similarity_table(view.isn_similarity_without_self),
        "isn_by_layer": layer_table(view.isn_by_layer),
        "instructions": instruction_table(neurons),
    }
