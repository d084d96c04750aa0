"""Make panels comparable: one range, one color bar or legend, and no repeated labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.container import BarContainer
from matplotlib.text import Text

from sparcom_analysis.plotting.fitting import legend_below

Grid = Sequence[Sequence[Axes]]


def share(grid: Grid, *, columns: bool = False) -> None:
    """Give rows of panels one value or color range, and one legend, or one color bar per row.

    Maps with different centers, and legends with different names, are unchanged. `columns`: one range per column.
    """
    axes = [ax for row in grid for ax in row]
    if columns:
        for column in _columns(grid):
            _share_range(column)
    elif _share_range(axes):
        for ax in (ax for row in grid for ax in row[:-1]):
            _mesh(ax).colorbar.remove()  # type: ignore[union-attr]
    legends = [legend for ax in axes if (legend := ax.get_legend()) is not None]
    if legends and len({str(ax.get_legend_handles_labels()[1]) for ax in axes}) == 1:
        for legend in legends:
            legend.remove()
        legend_below(axes[0], panels=True)


def label_outer(grid: Grid) -> None:
    """Remove labels that the panels to the left or below repeat."""
    for lines, side, name, inner in ((grid, "y", "labelleft", 1), (_columns(grid), "x", "labelbottom", 0)):
        for line in lines:
            axes = [getattr(ax, f"{side}axis") for ax in line]
            ticks = {str([*axis.get_view_interval(), *map(Text.get_text, axis.get_ticklabels())]) for axis in axes}
            labels = {axis.get_label_text() for axis in axes}
            for axis in axes[inner : len(axes) - 1 + inner]:
                axis.set_label_text("" if len(labels) == 1 else axis.get_label_text())
                if len(ticks) == 1:
                    axis.set_tick_params(**{name: False})


def _columns(grid: Grid) -> list[list[Axes]]:
    places = [(ax.get_subplotspec().colspan.start, ax) for row in grid for ax in row]  # type: ignore[union-attr]
    return [[ax for at, ax in places if at == column] for column in sorted({at for at, _ in places})]


def _mesh(ax: Axes) -> QuadMesh | None:
    return next((item for item in ax.collections if isinstance(item, QuadMesh)), None)


def _share_range(axes: Sequence[Axes]) -> bool:
    """Give these axes one value or color range with one center; return True if they share colors."""
    meshes = [mesh for ax in axes if (mesh := _mesh(ax)) is not None]
    if meshes:
        same = len(meshes) == len(axes) and len({getattr(mesh.norm, "vcenter", None) for mesh in meshes}) == 1
        spans = np.array([mesh.get_clim() for mesh in meshes], dtype=np.float64)
        for mesh in meshes if same else ():
            mesh.set_clim(spans.min(), spans.max())
        return same
    flat = any(isinstance(bars, BarContainer) and bars.orientation == "horizontal" for bars in axes[0].containers)
    spans = np.array([ax.get_xlim() if flat else ax.get_ylim() for ax in axes])
    for ax in axes:
        (ax.set_xlim if flat else ax.set_ylim)(spans.min(), spans.max())
    return False
