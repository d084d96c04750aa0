"""Loss against tokens, as a table and as a picture. Drawing only: the points come in ready."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparcom_extractor.models.tune_train import Point

COLUMNS = ("step", "epoch", "tokens", "training_loss", "held_out_loss", "learning_rate")
TRAINING_COLOUR, HELD_OUT_COLOUR = "#0072B2", "#D55E00"  # of Okabe and Ito, told apart by the colour-blind too
SMOOTHED = 8  # the line is the mean over this share of the tokens; steps alone show the lengths of their texts


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
    for at, loss in (looks[0], looks[-1]):
        axes.annotate(f"{loss:.2f}", (at, loss), xytext=(4, 6), textcoords="offset points", color=HELD_OUT_COLOUR)


def smoothed(tokens: Sequence[int], losses: Sequence[float]) -> list[float]:
    """Mean loss of the steps up to each one within an eighth of all tokens, each step weighted by its tokens."""
    sizes = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    means, span = [], tokens[-1] / SMOOTHED
    for last, end in enumerate(tokens):
        inside = [number for number in range(last + 1) if number == last or tokens[number] > end - span]
        weight = sum(sizes[number] for number in inside)
        means.append(sum(losses[number] * sizes[number] for number in inside) / weight)
    return means
