"""What tuning alters, by category, of the dense model and of the mixture: the rows of a table, for page and terminal.

Reads what `sparcom analyze --tuned` wrote; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparcom_analysis.schema import Metrics


@dataclass(frozen=True, slots=True)
class Alteration:
    """A row. values: of each category; None where there is none. low, high: interval of the value over all."""

    what: str
    categories: Sequence[str]
    values: Sequence[float | None]
    overall: float | None
    low: float | None
    high: float | None


def read_metrics(folder: Path) -> Metrics:
    """metrics.json of a folder of results."""
    from sparcom_analysis.schema import Metrics

    return Metrics.model_validate_json((folder / "metrics.json").read_text(encoding="utf-8"))


def read_alterations(dense: Path, mixture: Path) -> list[Alteration]:
    """The rows of both, from the folders that `sparcom analyze` wrote."""
    return alterations(read_metrics(dense), read_metrics(mixture))


def alterations(dense: Metrics, mixture: Metrics) -> list[Alteration]:
    """Neurons of the dense model, of each component of the mixture, and its use of experts; only what was compared."""
    from sparcom_analysis.reading.populations import TITLES

    views = [mixture.of(part.component) for part in mixture.components or []]
    named = [("dense model", dense), *((f"mixture, {TITLES[one.component]}", one) for one in views if one.component)]
    rows = []
    for name, view in named:
        if (part := view.isn_alteration) is not None:
            every = part.overall
            ends = (every.alteration, every.low, every.high)
            rows.append(Alteration(f"neurons, {name}", part.categories, part.alteration, *ends))
    if (routes := mixture.ise_alteration) is not None:
        ends = (routes.overall.alteration, routes.overall.low, routes.overall.high)
        rows.append(Alteration("experts chosen, mixture", routes.categories, routes.alteration, *ends))
    return rows


def as_text(rows: Sequence[Alteration]) -> str:
    """Aligned columns for a terminal; rows in which the categories are those of the first."""
    if not rows:
        return "no tuned twin was compared"
    heads = [*rows[0].categories, "all"]
    lines = [
        (row.what, [_number(value) for value in (*row.values, row.overall)])
        for row in rows
        if list(row.categories) == list(rows[0].categories)
    ]
    left = max(len(what) for what, _ in lines)
    widths = [max(5, len(head)) for head in heads]
    return "\n".join(
        [
            "alteration by tuning (0: the same; neurons: 1 - Jaccard index, experts: 1 - correlation)",
            *(
                f"{what:<{left}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                for what, cells in [("", heads), *lines]
            ),
        ]
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
