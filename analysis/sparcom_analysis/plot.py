"""Plots of measures: `sp.plot.NAME(ds, ax=None, **style)` for each measure with a plot; multi-panel figures; files.

    sp.plot.similarity(sp.similarity(isn), ax=ax, vmin=0.3, vmax=0.7, annot=True)

`style` is passed to a function of `plotting`: `heatmap` (vmin, vmax, center, annot), `curves` (ymin, ymax, legend),
`bars` or `stacked`. All take `title` and `label`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.plotting import fitting as fit
from sparcom_analysis.plotting import sharing
from sparcom_data.errors import InvalidInputError

KINDS = ("pdf", "svg", "png")


def _plots() -> dict[str, Callable[..., Axes]]:
    return {measure.name: measure.plot for measure in REGISTRY if measure.plot is not None}


def __getattr__(name: str) -> Callable[..., Axes]:
    """Return the plot function of the measure with this name."""
    if (drawing := _plots().get(name)) is None:
        raise AttributeError(f"there is no plot {name!r}; choose one of {', '.join(_plots())}")
    return drawing


def __dir__() -> list[str]:
    return sorted([*_plots(), "panels", "save"])


def panels(
    datasets: Sequence[xr.Dataset | None] | Sequence[Sequence[xr.Dataset | None]],
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    share: bool | Literal["columns"] = True,
    *,
    measure: str | None = None,
    width: float | None = None,
    **style: Any,
) -> Figure:
    """Draw several models side by side, as in the paper's figures 3, 4 and 5.

    Args:
        datasets: one row of Datasets of a measure, or several rows (such as tuned above base). None leaves a gap.
        titles: panel titles, with the same nesting (default: the titles of the plots).
        share: use one color or value range and one color bar or legend (default: True); "columns": one per column.
        measure: name of the measure (default: the Datasets' attribute `measure`).
        width: width of the figure in inches (default: two columns of a paper, or more for many categories).
        **style: as for the plot of the measure.

    Raises:
        InvalidInputError: there are no Datasets, or the measure is unknown.
    """
    nested = not any(isinstance(item, xr.Dataset) for item in datasets)
    rows: Sequence[Any] = datasets if nested else [datasets]
    held = [(at, place, ds) for at, row in enumerate(rows) for place, ds in enumerate(row) if ds is not None]
    if {at for at, *_ in held} != {*range(len(rows) or 1)}:
        raise InvalidInputError("panels need at least one Dataset in each row; pass [ds, …] or [[ds, …], [ds, …]]")
    drawing = _plots().get(measure or str(held[0][2].attrs.get("measure")))
    if drawing is None:
        known = ", ".join(_plots())
        raise InvalidInputError(f"the measure of these Datasets is unknown; pass measure=NAME, one of {known}")
    across = max(map(len, rows))
    alone = fit.figure_of(drawing(held[0][2], **style)).get_size_inches()  # size of a single panel
    each = max(7.0 / across, 0.5 * alone[0]) if width is None else width / across
    figure = fit.new_figure(each * across, len(rows) * alone[1] * min(1.0, max(0.75, each / alone[0])))
    grid: list[list[Axes]] = [[] for _ in rows]
    for at, place, ds in held:
        grid[at].append(drawing(ds, ax=figure.add_subplot(len(rows), across, at * across + place + 1), **style))
        if titles is not None:
            fit.set_title(grid[at][-1], str(titles[at][place] if nested else titles[place]))
    if share:
        sharing.share(grid, columns=share == "columns")
    sharing.label_outer(grid)
    if all(ax.get_aspect() == 1.0 for row in grid for ax in row):
        fit.fit_height(grid[0][0])
    return figure


def save(drawn: Figure | Axes, path: str | Path) -> None:
    """Write a figure, or the figure of these axes, as .pdf or .svg (with editable text) or .png.

    Raises:
        InvalidInputError: the file name has another suffix.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise InvalidInputError(f"the figure's suffix must be one of {', '.join(KINDS)}; got {str(path)!r}")
    figure = drawn if isinstance(drawn, Figure) else fit.figure_of(drawn)
    engine = figure.get_layout_engine()
    Path(path).write_bytes(plotting.render(figure, kind))
    figure.set_layout_engine(engine or "none")
