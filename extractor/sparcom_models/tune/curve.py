"""Loss against tokens, as a table and as a picture. Drawing only: the points come in ready."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparcom_models.tune.train import Point

COLUMNS = ("step", "epoch", "tokens", "training_loss", "held_out_loss", "learning_rate")
TRAINING_COLOUR, HELD_OUT_COLOUR = "#0072B2", "#D55E00"  # of Okabe and Ito, told apart by the colour-blind too
SMOOTHED = 8  # the line means over an eighth of the tokens on either side: a step's loss is that of its texts' length


def write_csv(points: Sequence[Point], path: Path) -> None:
    """A row a point; a loss that was not taken is an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in points:
            values = [getattr(point, name) for name in COLUMNS]
            writer.writerow([f"{value:.9g}" if isinstance(value, float) else value for value in values])


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Both losses against the tokens trained on, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    _draw_training(axes, points)
    _draw_held_out(axes, points)
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("cross entropy (nats a token)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", color="#d8d8d8", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, points[-1].tokens * 1.04)
    axes.legend(edgecolor="none")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=160, metadata={"Software": None})  # a version of matplotlib would change the bytes


def _draw_training(axes: Axes, points: Sequence[Point]) -> None:
    steps = [(point.tokens, point.training_loss) for point in points if point.training_loss is not None]
    tokens, losses = zip(*steps, strict=True)
    axes.plot(tokens, losses, ".", color=TRAINING_COLOUR, alpha=0.3, markersize=5, label="training, each step")
    axes.plot(tokens, smoothed(tokens, losses), color=TRAINING_COLOUR, linewidth=1.8, label="training, running mean")


def _draw_held_out(axes: Axes, points: Sequence[Point]) -> None:
    looks = [(point.tokens, point.held_out_loss) for point in points if point.held_out_loss is not None]
    tokens, losses = zip(*looks, strict=True)
    style = {"color": HELD_OUT_COLOUR, "linewidth": 1.8, "linestyle": "--", "marker": "o", "markersize": 5}
    axes.plot(tokens, losses, label="held out", **style)  # type: ignore[arg-type]
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for look in (looks[0], looks[-1]):
        axes.annotate(
            f"{look[1]:.2f}", look, xytext=(4, 8), textcoords="offset points", color=HELD_OUT_COLOUR, bbox=paper
        )


def smoothed(tokens: Sequence[int], losses: Sequence[float]) -> list[float]:
    """Mean loss around each step: of the steps within an eighth of all tokens on either side, weighted by their tokens.

    Args:
        tokens: trained on up to and with each step, rising.
        losses: of each step.
    """
    sizes = np.diff([0, *tokens])
    middles = np.array(tokens) - sizes / 2
    reach = tokens[-1] / SMOOTHED
    first = np.searchsorted(middles, middles - reach, side="left")
    last = np.searchsorted(middles, middles + reach, side="right")
    weights, weighted = (np.concatenate([[0.0], np.cumsum(values)]) for values in (sizes, sizes * np.array(losses)))
    means: list[float] = ((weighted[last] - weighted[first]) / (weights[last] - weights[first])).tolist()
    return means
