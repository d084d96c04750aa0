"""A progress bar of one job on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from sparcom_client.types import Job
from sparcom_data.progress import describe_progress


@contextmanager
def job_bar() -> Iterator[Callable[[Job], None]]:
    """Provide a function that shows a job. The bar appears with its first call."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None, note="")

    def show(job: Job) -> None:
        done, total = job.progress.complete, job.progress.instructions
        bar.update(task, completed=done, total=total or None, note=describe(job), description=f"{job.state:<10}")
        bar.start()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def describe(job: Job) -> str:
    """Return the text beside the bar: counts, what the job waits for, tokens per second, time left as m:ss."""
    progress = asdict(job.progress)
    if job.state != "running":
        progress["seconds_left"] = None
    more = [f"after {job.queue_position} other jobs"] if job.queue_position else []
    if job.reason and not job.ended:
        more.append(job.reason)
    return describe_progress(progress, *more)
