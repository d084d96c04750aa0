"""Renders report.html: one file that holds everything, figures included, and loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from sparcom_analysis import findings
from sparcom_analysis.schema import Metrics


def _number(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def render_report(metrics: Metrics, figures: Mapping[str, bytes]) -> str:
    """The report as HTML text.

    Args:
        metrics: all numbers that are shown.
        figures: SVG bytes of `isn_similarity` and `isn_by_layer`.
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
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        figures={name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        similarity_sentence=findings.similarity_sentence(metrics),
        layer_sentence=findings.layer_sentence(metrics),
        size_sentence=findings.size_sentence(metrics),
        length_sentence=findings.length_sentence(metrics),
        no_pair=any(value is None for row in metrics.isn_similarity_without_self.matrix for value in row),
    )
