"""Renders report.html: one file that holds everything, figures included, and loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from sparcom_analysis import findings, findings_experts
from sparcom_analysis.populations import TITLES
from sparcom_analysis.schema import Metrics


def _number(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def render_report(metrics: Metrics, views: Mapping[str, Metrics], figures: Mapping[str, bytes]) -> str:
    """The report as HTML text.

    Args:
        metrics: all numbers that are shown.
        views: the metrics with each component's parts in front, by the ending of its figures' names; the first is that
            of the component that the archive is about, whose ending is empty.
        figures: SVG bytes by name: `isn_similarity` and `isn_by_layer` with each ending, and those about experts.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparcom_analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["top"] = _top
    environment.filters["starred"] = _starred
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        parts=[_component(ending, view) for ending, view in views.items()],
        figures={name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        length_sentence=findings.length_sentence(metrics),
        no_pair=any(value is None for row in metrics.isn_similarity_without_self.matrix for value in row),
        experts=None if metrics.expert_frequency is None else _expert_sentences(metrics),
    )


def _component(ending: str, view: Metrics) -> dict[str, object]:
    """What the report shows of one component."""
    return {
        "ending": ending,
        "view": view,
        "title": "" if view.component is None else f"neurons of {TITLES[view.component]}",
        "similarity_sentence": findings.similarity_sentence(view),
        "layer_sentence": findings.layer_sentence(view),
        "size_sentence": findings.size_sentence(view),
    }


def _expert_sentences(metrics: Metrics) -> dict[str, str]:
    return {
        "frequency": findings_experts.frequency_sentence(metrics),
        "correlation": findings_experts.correlation_sentence(metrics),
        "share": findings_experts.share_sentence(metrics),
        "shift": findings_experts.shift_sentence(metrics),
    }


def _top(experts: Sequence[int], frequencies: Sequence[float]) -> str:
    """Experts and their frequencies in a cell of table 6: "17 (0.41), 3 (0.38)"."""
    return ", ".join(f"{expert} ({value:.2f})" for expert, value in zip(experts, frequencies, strict=True))


def _starred(experts: Sequence[int], kept: Sequence[bool]) -> str:
    """Experts, those that stay after tuning marked: "17*, 3"."""
    return ", ".join(f"{expert}{'*' if stays else ''}" for expert, stays in zip(experts, kept, strict=True))
