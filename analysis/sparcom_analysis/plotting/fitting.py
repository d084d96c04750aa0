"""Fit text into figures: measure it before drawing, wrap it, and choose sizes, ticks and legends."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

COLUMN = 3.4  # inches: one column of a paper; two are 7
LABEL, TICK = "small", "x-small"  # text sizes
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with a layout that leaves room for all text."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, compress=True))


def new_axes(width: float = COLUMN, height: float = 2.8) -> Axes:
    """Return the axes of a new figure of this size in inches, without pyplot."""
    return new_figure(width, height).add_subplot()


def figure_of(ax: Axes) -> Figure:
    """Return the root figure of the axes."""
    return ax.get_figure(root=True)  # type: ignore[return-value]


def visible(text: str) -> str:
    """Replace characters that XML forbids, and terminal control characters, with U+FFFD."""
    return _HIDDEN.sub("\ufffd", text)


def plain(text: str) -> str:
    """Return a visible text with dollar signs escaped, so that Matplotlib draws no mathtext."""
    return visible(text).replace("$", r"\$")


def points(size: float | str) -> float:
    """Return a text size in points."""
    return FontProperties(size=size).get_size_in_points()


def text_width(text: str, size: float | str) -> float:
    """Return the width of the widest line in inches."""
    family = (*mpl.rcParams["font.family"],)
    return points(size) * max(sum(_advance(letter, family) for letter in line) for line in text.split("\n"))


@lru_cache(maxsize=4096)
def _advance(letter: str, family: tuple[str, ...]) -> float:
    """Return the width of a letter at size 1 pt, in inches."""
    font = FontProperties(family=family, size=100)
    return float(text_to_path.get_text_width_height_descent(visible(letter), font, False)[0]) / 7200


def wrapped(text: str, size: float | str, inches: float) -> str:
    """Break the text into lines of at most this width in inches; split words if necessary."""
    shown, letters = text, len(text)
    while letters and text_width(shown, size) > inches:
        shown = "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))
        letters -= 1
    return shown


def set_label(axis: Axis, text: str, inches: float) -> None:
    """Set the label of an axis, wrapped to this width in inches."""
    axis.set_label_text(plain(wrapped(text, LABEL, inches)), fontsize=LABEL)


def set_title(ax: Axes, text: str, inches: float | None = None) -> None:
    """Set the title of the axes, wrapped to this width in inches (default: the axes' width)."""
    shown = plain(wrapped(text, LABEL, inches or max(1.1, inches_of(ax)[0])))
    ax.set_title(shown, fontsize=LABEL, y=1.0)  # without y, each draw measures all ticks


def fit_height(ax: Axes, inches: float | None = None) -> None:
    """Set the figure height so that the axes have this height in inches (default: no space around square cells)."""
    figure = figure_of(ax)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    width, height = figure.get_size_inches()
    needed = figure.get_tightbbox().height + 0.1 if inches is None else height - inches_of(ax)[1] + inches
    figure.set_size_inches(width, needed)


def fix_layout(figure: Figure) -> None:
    """Compute the layout from the figure's initial state, and freeze it."""
    if (engine := figure.get_layout_engine()) is not None:
        for ax in figure.axes:
            if (place := ax.get_subplotspec()) is not None:
                ax.set_subplotspec(place)
        engine.execute(figure)
        figure.set_layout_engine(None)


def inches_of(ax: Axes) -> tuple[float, float]:
    """Return width and height of the axes in inches; an estimate before layout."""
    place, (width, height) = ax.get_position(), figure_of(ax).get_size_inches()
    return place.width * width, place.height * height


def number(value: float, form: str) -> str:
    """Format a number with a Unicode minus sign, and no sign if it rounds to zero; "n/a" for NaN."""
    text = "n/a" if math.isnan(value) else format(value, form)
    return text.replace("-", "−" if text.strip("-0.") else "")


def most_lines(names: Sequence[str]) -> int:
    return max(name.count("\n") + 1 for name in names)


def layer_ticks(layers: Sequence[int], most: int = 8) -> list[int]:
    """Return at most this many layers, at round numbers."""
    steps = ([layer for layer in layers if layer % step == 0] for step in (1, 2, 5, 10, 20, 50, 100))
    found = next((some for some in steps if len(some) <= max(2, most)), [])
    return found if len(found) > 1 else sorted({layers[0], layers[-1]})


def legend_below(ax: Axes, *, panels: bool = False) -> None:
    """Place a legend below the axes, or below all panels; inside the axes if the figure has no layout engine."""
    handles, names = ax.get_legend_handles_labels()
    figure = figure_of(ax)
    alone = panels or figure.axes == [ax]
    inches = figure.get_size_inches()[0] - 0.3 if alone else inches_of(ax)[0]
    held = [wrapped(name, TICK, max(1.0, inches - 0.45)) for name in names]
    fitting = max(1, min(4, int(inches / (max(text_width(name, TICK) for name in held) + 0.42))))
    style: dict[str, Any] = {"fontsize": TICK, "handlelength": 2.6, "columnspacing": 1.2, "labelspacing": 0.3}
    style |= {"frameon": False, "borderpad": 0.2, "ncols": -(-len(names) // -(-len(names) // fitting))}
    if panels:
        figure.legend(handles, held, loc="outside lower center", **style)
    elif figure.get_layout_engine() is None:
        ax.legend(handles, held, **(style | {"loc": "best", "frameon": True, "framealpha": 0.8, "ncols": 1}))
    else:
        below: Transform = ax.transAxes + ScaledTranslation(0, -27 / 72, figure.dpi_scale_trans)
        below = blended_transform_factory(figure.transFigure, below) if alone else below
        ax.legend(handles, held, loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=below, **style)
