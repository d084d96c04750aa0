"""Writes the demo's page: a dense model and a mixture of experts side by side, from what `sparcom analyze` made.

One file that loads nothing from anywhere; it links to the two full reports. Computes nothing but means of the matrices
that metrics.json has.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparcom_data.storage import write_durably

if TYPE_CHECKING:
    from sparcom_analysis.schema.metrics import Metrics


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


def write_page(output: Path, dense: Path, mixture: Path) -> Path:
    """Write index.html into `output`, where both folders of results lie; its path."""
    page = output / "index.html"
    write_durably(page, [render_page(dense, mixture).encode()])
    return page


def render_page(dense: Path, mixture: Path) -> str:
    """The page as HTML text, from the folders that `sparcom analyze` wrote for a dense model and a mixture."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sparcom_analysis.findings import experts as findings_experts
    from sparcom_analysis.findings import neurons as findings

    environment = Environment(
        loader=PackageLoader("sparcom_cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain, routed = _read(dense), _read(mixture)
    columns = _columns(plain, dense, routed, mixture)
    return environment.get_template("demo.html.j2").render(
        dense=plain,
        mixture=routed,
        moe=routed.archive.moe,
        columns=columns,
        likenesses=_likenesses(columns, routed),
        findings=findings,
        experts=findings_experts,
        expert_figure=lambda name: _embedded(mixture, name),
        folders={"dense": dense.name, "mixture": mixture.name},
    )


def _read(folder: Path) -> Metrics:
    from sparcom_analysis.schema.metrics import Metrics

    return Metrics.model_validate_json((folder / "metrics.json").read_text(encoding="utf-8"))


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
