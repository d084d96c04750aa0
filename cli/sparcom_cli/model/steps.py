"""Progress of the `sparcom model` commands on standard error, and the line that reports the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparcom_models import MadeModel


def report(made: MadeModel, description: str) -> None:
    """Print the path of the model, and whether it existed before."""
    where = f"{made.path} ({description})"
    click.echo(f"Made {where}" if made.fresh else f"Nothing to do: {where} already exists")


@contextmanager
def progress() -> Iterator[Steps]:
    """Show each step: on a terminal with a bar and the time left, elsewhere as one line when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    text = TextColumn("{task.description}{task.fields[note]}", table_column=Column(overflow="fold"))
    bars = Progress(TimeElapsedColumn(), BarColumn(20), text, TimeRemainingColumn(), console=Console(stderr=True))
    try:
        yield Steps(bars)
    finally:
        if bars.live.is_started:  # else stop prints an empty line
            bars.stop()


class Steps:
    """A `ProgressCallback` that draws bars. A new step ends the one before it; a note follows its step."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._step = bars, ""

    def __call__(self, step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if step != self._step:
            if self._bars.tasks:
                self._bars.update(self._bars.tasks[-1].id, completed=1, total=1)
            self._step = step
            self._bars.add_task(step, total=None, note="")
            if self._bars.console.is_terminal:
                self._bars.start()
            else:
                click.echo(f"{step} ...", err=True)
        if total:
            note = f" {done:,} of {total:,}, {note}" if note else ""
            self._bars.update(self._bars.tasks[-1].id, completed=done, total=total, note=note)
