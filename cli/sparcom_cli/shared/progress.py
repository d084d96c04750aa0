"""A progress bar on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class UpdateBar(Protocol):
    """Sets the bar to `done` of `total`, and the texts around it; an empty `label` keeps the current one."""

    def __call__(self, done: int, total: int, note: str, label: str = "") -> None: ...


@contextmanager
def progress_bar(label: str, *, time_left: bool = False) -> Iterator[UpdateBar]:
    """Provide a bar with `label` before it and a note after it.

    The bar appears with the first update, so an error before any work follows no empty bar.

    Args:
        time_left: also show the time left that rich estimates from the updates.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")]
    bar = Progress(*columns, *([TimeRemainingColumn()] if time_left else []), console=Console(stderr=True))
    task = bar.add_task(label, total=None, note="")

    def update(done: int, total: int, note: str, label: str = "") -> None:
        bar.update(task, completed=done, total=total, note=note, description=label or None)
        bar.start()

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
