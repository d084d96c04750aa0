"""Text about jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sparcom_cli.shared.text import print_failures
from sparcom_data.progress import describe_counts

if TYPE_CHECKING:
    from sparcom_client import Job


def show_archives(job: Job) -> None:
    """Print the addresses of a job's archives, and their paths if the server tells them."""
    for title, part in zip(("archive", "tuned"), job.archives, strict=False):
        click.echo(f"{title:<8} {part.zarr}")
        if part.path:
            click.echo(f"path     {part.path}")


def show_outcome(job: Job) -> None:
    """Print how a job ended, and on standard error its failures."""
    progress = job.progress
    state = "incomplete" if job.state == "complete" and not job.succeeded else job.state
    click.echo(f"{state}: {counts(job)}; {progress.tokens_done:,} tokens in {progress.seconds:.1f} s")
    if job.error:
        click.echo(f"error: {job.error.message}", err=True)
    print_failures(((failure.id, failure.error) for failure in job.failures), progress.failed)


def counts(job: Job) -> str:
    """Return the instructions of a job by state."""
    progress = job.progress
    states = {name: getattr(progress, name) for name in ("complete", "failed", "cancelled")}
    return describe_counts(states, progress.instructions)
