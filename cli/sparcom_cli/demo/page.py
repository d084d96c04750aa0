"""Writes the demo's page: a dense model and a mixture of experts side by side, each before and after tuning.

From what `sparcom analyze --tuned` made.

One file that loads nothing from anywhere; it links to the two full reports. Computes nothing but means of the matrices
that metrics.json has.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparcom_cli.demo.alteration import alterations, read_metrics
from sparcom_data.errors import InvalidInputError
from sparcom_data.storage import write_file

if TYPE_CHECKING:
    from sparcom_analysis.schema.metrics import Metrics

CONTENTS = re.compile(r'<li><a href="#([^"]+)">([^<]+)</a>')  # of a report


@dataclass(frozen=True, slots=True)
class Column:
    """One population of neurons: what it is, its metrics, and where its figures' names end."""

    title: str
    view: Metrics
    folder: Path
    ending: str

    def figure(self, name: str) -> str:
        """An SVG figure of it, base64."""
        return _embedded(self.folder, f"{name}{self.ending}")


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two different instructions are, mean over categories: of one category, and of two; None without any."""

    what: str
    measure: str
    within: float | None
    between: float | None

    @classmethod
    def of(cls, what: str, measure: str, matrix: Sequence[Sequence[float | None]]) -> Likeness:
        """From a matrix over categories without pairs of an instruction with itself."""
        cells = [(value, i == j) for i, row in enumerate(matrix) for j, value in enumerate(row) if value is not None]
        within, between = ([value for value, same in cells if same is kind] for kind in (True, False))
        return cls(what, measure, _mean(within), _mean(between))

    @property
    def ratio(self) -> float | None:
        """How many times as alike those of one category are; None where that says nothing."""
        return self.within / self.between if self.within is not None and self.between and self.between > 0 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_page(output: Path, dense: Path, mixture: Path, *, tuned_here: bool) -> Path:
    """Write index.html into `output`, where both folders of results lie; its path."""
    page = output / "index.html"
    write_file(page, [render_page(dense, mixture, tuned_here=tuned_here).encode()])
    return page


def render_page(dense: Path, mixture: Path, *, tuned_here: bool) -> str:
    """The page as HTML text.

    Args:
        dense: folder that `sparcom analyze --tuned` wrote for a dense model. mixture: the same for a mixture.
        tuned_here: whether both twins are those that the demo makes, so that it is known how.

    Raises:
        InvalidInputError: one of them was analysed without a tuned twin, or `mixture` is of a model without experts.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sparcom_analysis.findings import alteration as alteration_findings
    from sparcom_analysis.findings import experts as findings_experts
    from sparcom_analysis.findings import neurons as findings
    from sparcom_analysis.findings.short import in_short

    environment = Environment(
        loader=PackageLoader("sparcom_cli.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain, routed = read_metrics(dense), read_metrics(mixture)
    _require_twins(plain, routed)
    columns = _columns(plain, dense, routed, mixture)
    return environment.get_template("demo.html.j2").render(
        dense=plain,
        mixture=routed,
        moe=routed.archive.moe,
        tuned_here=tuned_here,
        columns=columns,
        likenesses=_likenesses(columns, routed),
        alterations=alterations(plain, routed),
        short={"Dense model": in_short(plain), "Mixture of experts": in_short(routed)},
        parts=_parts(dense, mixture),
        findings=findings,
        altered=alteration_findings,
        experts=findings_experts,
        expert_figure=lambda name: _embedded(mixture, name),
        folders={"dense": dense.name, "mixture": mixture.name},
    )


def _require_twins(plain: Metrics, routed: Metrics) -> None:
    if plain.isn_alteration is None or routed.ise_alteration is None or routed.archive.moe is None:
        raise InvalidInputError(
            [
                "the page compares a dense model and a mixture of experts, each with its tuned twin; analyse both with "
                "--tuned first"
            ]
        )


def _parts(dense: Path, mixture: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the reports hold: the title of each section, and the name and address of it in each report that has it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, folder in (("mixture of experts", mixture), ("dense model", dense)):  # the mixture has the longer list
        report = (folder / "report.html").read_text(encoding="utf-8")
        for anchor, title in CONTENTS.findall(report):
            found.setdefault(html.unescape(title), []).insert(0, (name, f"{folder.name}/report.html#{anchor}"))
    return list(found.items())


def _embedded(folder: Path, name: str) -> str:
    return base64.b64encode((folder / "figures" / f"{name}.svg").read_bytes()).decode("ascii")


def _columns(plain: Metrics, dense: Path, routed: Metrics, mixture: Path) -> list[Column]:
    """The dense model's neurons, then those of each component of the mixture."""
    from sparcom_analysis.reading.populations import TITLES
    from sparcom_analysis.report.files import component_views

    parts = [
        Column(f"Mixture: {TITLES[view.component]}", view, mixture, ending)
        for ending, view in component_views(routed).items()
        if view.component is not None
    ]
    return [Column("Dense model", plain, dense, ""), *parts]


def _likenesses(columns: Sequence[Column], routed: Metrics) -> list[Likeness]:
    rows = [
        Likeness.of(f"{column.title}, neurons", "Jaccard index of ISNs", column.view.isn_similarity_without_self.matrix)
        for column in columns
    ]
    if (part := routed.ise_correlation_without_self) is not None:
        rows.append(Likeness.of("Mixture: routes", "correlation of expert frequencies", part.matrix))
    return rows
