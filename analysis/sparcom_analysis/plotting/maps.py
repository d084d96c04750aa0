"""Draw matrices as heat maps, with numbers in the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from sparcom_analysis.plotting import fitting as fit

MAX_NUMBERED = 24  # rows or columns with legible numbers in the cells


class _Cell(Text):
    """Number of a cell; chooses size and color when drawn. `letters`: width of the widest number at size 1."""

    def __init__(self, mesh: QuadMesh, cell: tuple[int, int], number: str, letters: float, mark: bool) -> None:
        super().__init__(ha="center", va="center", weight="bold" if mark else "normal")
        self._mesh, self._cell, self._number, self._letters, self._mark = mesh, cell, number, letters, mark
        self.set_in_layout(False)

    def draw(self, renderer: Any) -> None:
        """Draw number and mark in black or white, by contrast with the cell (WCAG)."""
        (low, high), dpi = self._mesh.axes.transData.transform([(0, 0), (1, 1)]), self.figure.dpi  # type: ignore[union-attr]
        width, height = np.abs(high - low) * 72 / dpi
        size = min(fit.points(fit.TICK) + 0.5, 0.85 * width / (self._letters or 1), 0.62 * height)
        value = self._mesh.get_array()[self._cell]  # type: ignore[index]
        shade = (1, 1, 1) if np.ma.is_masked(value) else self._mesh.cmap(self._mesh.norm(value))[:3]
        linear = [part / 12.92 if part < 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shade]
        self.set_color("black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white")
        (row, column), shown = self._cell, self._number if size >= 4.8 else ""
        if self._mark:
            x, y, va = (column + 0.4, row - 0.48, "top") if shown else (column, row, "center")
            self.set(text="*", x=x, y=y, va=va, size=min(8.0, height * (0.5 if shown else 1.0)))
            super().draw(renderer)
        self.set(text=shown, x=column, y=row, va="center", size=size)
        super().draw(renderer)


def heatmap(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    ax: Axes | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    annot: bool | None = None,
    marks: ArrayLike | None = None,
    label: str = "",
    title: str = "",
) -> Axes:
    """Draw a matrix with a color bar named `label`; cells are square if rows and columns have the same names.

    Args:
        values: (row, column); NaN cells are hatched. rows, columns: tick labels; thinned for more than 8 integers.
        vmin, vmax: color limits (default: limits of the values, rounded outward to twentieths).
        center: use a diverging map centered on this value.
        annot: write numbers into the cells where they fit (default: if there are few cells).
        marks: bool (row, column), cells to set in bold with an asterisk.
    """
    matrix = np.ma.masked_invalid(np.asarray(values, dtype=np.float64))  # type: ignore[no-untyped-call]
    square, own, large = list(rows) == list(columns), ax is None, max(matrix.shape) > MAX_NUMBERED
    sides = [_wrapped(rows), _wrapped(columns)]
    cells = [_cell_inches(side, annot is not False) for side in sides]
    high, room = max(1.1, cells[0] * len(rows)), None
    if ax is None:
        beside, below = (max(fit.text_width(name, fit.TICK) for name in side) for side in sides)
        room = max(fit.COLUMN - beside - 0.75, cells[1] * len(columns))  # 0.75: the color bar
        ax = fit.new_axes(room + beside + 0.75, min(0.7 * len(rows), room) + below + 0.5 if square else 1.3 * high)
    norm = _norm(matrix.compressed(), vmin, vmax, center)
    beyond = 2 * bool((matrix > norm.vmax).any()) + bool((matrix < norm.vmin).any())
    edges = [np.arange(count + 1) - 0.5 for count in matrix.shape[::-1]]
    lines: dict[str, Any] = {"edgecolors": "face" if large else "white", "linewidth": 0.1 if large else 0.8}
    mesh = ax.pcolormesh(*edges, matrix, cmap="cividis" if center is None else "PuOr_r", norm=norm, **lines)
    ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[-1, 0]], aspect="equal" if square else "auto")
    ax.patch.set(facecolor="#f0f0f0", edgecolor="#c4c4c4", hatch="/////")
    _name_cells(ax, *sides)
    fit.set_title(ax, title, room)
    numbered = annot or (annot is None and not large and not _numeric(sides[1]))
    marked = np.zeros(matrix.shape, bool) if marks is None else np.asarray(marks, dtype=bool)
    digits = 3 if norm.vmax - norm.vmin <= 0.1 else 2 if norm.vmax < 100 else 0  # type: ignore[operator]
    texts = {at: fit.number(value, f",.{digits}f") if numbered else "" for at, value in np.ndenumerate(matrix.data)}
    letters = 1.09 * max(fit.text_width(text, 72) for text in {*texts.values()})  # bold is wider
    for cell in zip(*(at.tolist() for at in np.nonzero(marked | bool(numbered))), strict=True):
        ax.add_artist(_Cell(mesh, cell, texts[cell], letters, bool(marked[cell])))
    extend = ("neither", "min", "max", "both")[beyond]
    bar = fit.figure_of(ax).colorbar(mesh, cax=ax.inset_axes((1.03, 0, 0.045, 1)), extend=extend)
    fit.set_label(bar.ax.yaxis, label, max(1.4, fit.inches_of(ax)[1]))
    bar.ax.tick_params(labelsize=fit.TICK, length=2)
    bar.outline.set_visible(False)
    if center is not None:
        bar.ax.axhline(center, color="black", linewidth=0.8)
    if own:
        fit.fit_height(ax, None if square else high)
    return ax


def _wrapped(names: Sequence[str]) -> list[str]:
    return [fit.wrapped(str(name), fit.TICK, 1.4 if len(names) <= 16 else 3.0) for name in names]


def _cell_inches(names: Sequence[str], numbered: bool) -> float:
    if _numeric(names):
        return 0.06
    return 0.31 if numbered and len(names) <= 16 else 0.03 + 0.11 * fit.most_lines(names)


def _numeric(names: Sequence[str]) -> bool:
    return len(names) > 8 and all(name.isdigit() for name in names)


def _name_cells(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Label both axes; labels are rotated if wider than a cell, and smaller if taller."""
    size = fit.points(fit.TICK)
    across, down = fit.inches_of(ax)
    for axis, names, room, each in ((ax.xaxis, columns, across, 0.3), (ax.yaxis, rows, down, 0.16)):
        named = {*map(str, fit.layer_ticks([*map(int, names)], int(room / each)))} if _numeric(names) else {*names}
        at = [place for place, name in enumerate(names) if name in named]
        axis.set_ticks(at, [fit.plain(names[place]) for place in at])
        axis.label.set_fontsize(fit.LABEL)
        axis.set_tick_params(labelsize=size / max(1.0, 1.15 * len(at) * fit.most_lines(names) * size / 72 / room))
    if max(fit.text_width(name, fit.TICK) for name in columns) > 0.85 * across / len(ax.get_xticks()):
        for text in ax.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _norm(known: NDArray[np.float64], vmin: float | None, vmax: float | None, center: float | None) -> Normalize:
    low, high = _rounded_range(known)
    if center is not None:
        reach = float(np.abs(known - center).max(initial=0.0)) or 1.0
        low = center - reach if known.min(initial=0.0) < 0 else max(0.0, center - reach)  # no impossible colors
        high = center + reach
    low, high = (old if new is None else new for old, new in ((low, vmin), (high, vmax)))
    return TwoSlopeNorm(center, low, high) if center is not None and low < center < high else Normalize(low, high)


def _rounded_range(values: NDArray[np.float64]) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    most = float(np.abs(values).max())
    step = 0.05 if most <= 2 else 10.0 ** math.floor(math.log10(most)) / 2
    low, high = math.floor(values.min() / step + 1e-9) * step, math.ceil(values.max() / step - 1e-9) * step
    return (low, high) if high > low else (low - step, high + step)


def limits(datasets: Sequence[Any], variable: str = "value") -> tuple[float, float]:
    """Return a common color or y range of several Datasets, rounded outward (below 2, to twentieths)."""
    values = np.concatenate([np.asarray(ds[variable], dtype=np.float64).ravel() for ds in datasets])
    return _rounded_range(values[np.isfinite(values)])
