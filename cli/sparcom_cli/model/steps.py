"""How the commands of `sparcom model` show what they do on standard error, and say what came of it.

Knows the steps' names as they come in; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, Task

    from sparcom_models import MadeModel


def say(made: MadeModel, what: str) -> None:
    """Say where the model is, and whether it was there already."""
    where = f"{made.path} ({what})"
    click.echo(f"Made {where}" if made.fresh else f"Nothing to do: {where} is there already")


@contextmanager
def progress() -> Iterator[Steps]:
    """Show each step: on a terminal with a bar and the time left, elsewhere as one line when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    step = TextColumn("{task.description}{task.fields[note]}", table_column=Column(overflow="fold"))
    columns = (SpinnerColumn(), TimeElapsedColumn(), BarColumn(bar_width=20), step)
    bars = Progress(*columns, console=Console(stderr=True))
    try:
        yield Steps(bars)
    finally:
        if bars.live.is_started:
            bars.stop()


class Steps:
    """Draws what a `Tell` is told: a new description ends the step before it. A note stands behind the description."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._step = ""

    def __call__(self, step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if step != self._step:
            self._finish()
            self._step = step
            self._bars.add_task(step, total=None, note="")
            if self._bars.console.is_terminal:
                self._bars.start()
            else:
                click.echo(f"{step} ...", err=True)
        task = self._bars.tasks[-1]
        if total:
            self._bars.update(task.id, completed=done, total=total)
        if note:
            self._bars.update(task.id, note=f" {done:,} of {total:,}, {note}{_left(task)}")

    def _finish(self) -> None:
        if self._bars.tasks:
            self._bars.update(self._bars.tasks[-1].id, completed=1, total=1)


def _left(task: Task) -> str:
    """Time left as the bar reckons it, where it can."""
    seconds = task.time_remaining
    return f", {int(seconds) // 60}:{int(seconds) % 60:02d} left" if seconds else ""
