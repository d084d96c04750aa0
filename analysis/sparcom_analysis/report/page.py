"""Renders report.html: one file that holds everything, figures and tables included, and loads nothing from anywhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from sparcom_analysis.findings import neurons as findings
from sparcom_analysis.findings.intervals import interval_caveat
from sparcom_analysis.findings.short import in_short
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.report.sections import instruction_tables, sections
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.tables.formats import Table, visible

WIDEST_REM = 51.0  # of the text
REM_PER_POINT = 0.09


def _number(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _width(svg: bytes) -> float:
    """How wide a figure is shown at most, in rem: by its own width, so that letters are as large in all."""
    found = re.search(rb'width="([0-9.]+)pt"', svg[:1000])
    return round(min(WIDEST_REM, REM_PER_POINT * float(found[1])), 1) if found else WIDEST_REM


def render_report(
    metrics: Metrics, views: Mapping[str, Metrics], tables: Mapping[str, Table], figures: Mapping[str, bytes]
) -> str:
    """The report as HTML text.

    Args:
        metrics: all numbers that are shown.
        views: the metrics with each component's parts in front, by the ending of its figures' names; the first is that
            of the component that the archive is about, whose ending is empty.
        tables: every table by name. figures: SVG bytes of every figure by name.
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
    page = environment.get_template("report.html.j2").render(
        metrics=metrics,
        short=in_short(metrics),
        sections=sections(metrics, views, tables),
        instruction_blocks=instruction_tables(views, tables),
        figures={name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        widths={name: _width(data) for name, data in figures.items()},
        title="" if metrics.component is None else f"neurons of {TITLES[metrics.component]}",
        size_sentence=findings.size_sentence(metrics),
        length_sentence=findings.length_sentence(metrics),
        no_pair=any(value is None for row in metrics.isn_similarity_without_self.matrix for value in row),
        interval_caveat=interval_caveat(metrics),
    )
    return visible(page)
