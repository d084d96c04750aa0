"""Fits words into figures: measures text before it is laid out, wraps titles, arranges legends.

Constrained layout keeps room for text but neither wraps it nor widens the canvas, so long names would be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path

TITLE_SIZE = 10.5  # points
LEGEND_SIZE = 9
MARGIN = 0.3  # inches that a line leaves free, both sides together
_POINTS = 72.0
_HANDLE = 3.2  # length of a legend's handle, in letters
_GAPS = 4.0  # gaps of a legend's column, in letters


def canvas(width: float, height: float, *, square: bool = False) -> Figure:
    """A figure of so many inches. square: its cells are, which needs another layout engine.

    The layout is made at the SVG's 72 dots per inch. Hinted letters are up to 3 % wider in the PNG, hence the pads.
    """
    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06, compress=square)
    return Figure(figsize=(width, height), layout=engine)


def text_width(text: str, size: float) -> float:
    """Inches of the widest line; a dollar sign that is escaped counts as one letter."""
    font = FontProperties(size=size)
    lines = text.replace(r"\$", "$").split("\n")
    return max(text_to_path.get_text_width_height_descent(line or " ", font, False)[0] for line in lines) / _POINTS


def widest(names: Sequence[str], size: float) -> float:
    """Inches of the widest of some names; 0 for none."""
    return max((text_width(name, size) for name in names), default=0.0)


def wrapped(text: str, size: float, inches: float) -> str:
    """The text with line breaks at spaces, so that no line is wider than so many inches, but for a single word."""
    lines: list[str] = []
    for line in text.split("\n"):
        held = ""
        for word in line.split(" "):
            longer = f"{held} {word}" if held else word
            if held and text_width(longer, size) > inches:
                lines.append(held)
                held = word
            else:
                held = longer
        lines.append(held)
    return "\n".join(lines)


def title(figure: Figure, text: str) -> None:
    """Put a title over the whole figure, wrapped to its width; the figure grows by what the lines past two take."""
    width, height = figure.get_size_inches()
    said = wrapped(text, TITLE_SIZE, width - MARGIN)
    figure.set_size_inches(width, height + 0.19 * max(0, said.count("\n") - 1))
    figure.suptitle(said, fontsize=TITLE_SIZE)


def panel_title(axes: Axes, text: str, size: float, inches: float, **place: Any) -> None:
    """Put a title over one panel, wrapped to so many inches."""
    axes.set_title(wrapped(text, size, inches), fontsize=size, **place)


def legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str], most: int = 3) -> None:
    """A legend below all panels, in as many columns, `most` at most, as fit the width; the figure grows by its rows
    past two."""
    if not handles:
        return
    width, height = figure.get_size_inches()
    letter = LEGEND_SIZE / _POINTS
    column = widest(names, LEGEND_SIZE) + (_HANDLE + _GAPS) * letter
    columns = max(1, min(most, len(names), int((width - MARGIN) / column)))
    rows = -(-len(names) // columns)
    figure.set_size_inches(width, height + 0.19 * max(0, rows - 2))
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=LEGEND_SIZE,
        handlelength=_HANDLE,
    )
