"""`sparcom jobs`: list the extractions of a server, or show one."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.remote.show import counts, show_archives, show_outcome
from sparcom_cli.remote.values import metadata_option
from sparcom_cli.shared.options import AT_LEAST_1, option, optional, server_options

if TYPE_CHECKING:
    from sparcom_client import Job

STATES = ("queued", "loading", "running", "complete", "failed", "cancelling", "cancelled")
_TIME = "local time, such as 2026-01-31 or 2026-01-31T18:00:00"
LINE = "{:<24}  {:<10}  {:<16}  {:<13}  {:<20}  {}"


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@server_options
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Show only jobs in this state. Repeatable.")
@click.option("--model", help="Show only jobs of this model.")
@metadata_option("Show only jobs with this metadata.")
@optional("--since", click.DateTime(), "any time", f"Show only jobs submitted after this {_TIME}.", metavar="TIME")
@optional("--until", click.DateTime(), "any time", f"Show only jobs submitted before this {_TIME}.", metavar="TIME")
@option("--limit", AT_LEAST_1, 20, "Show at most this many jobs.")
@click.option("--json", "as_json", is_flag=True, help="Print whole jobs, one JSON object per line.")
def jobs(
    job_id: str | None,
    server: str,
    key: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """List the extractions of a server, newest first, or show the one with this ID."""
    from sparcom_client import Client

    with Client(server, key) as client:
        if job_id is not None:
            job = client.job(job_id)
            click.echo(job.model_dump_json()) if as_json else _show(job)
            return
        filters |= {"created_after": since and since.astimezone(), "created_before": until and until.astimezone()}
        if not as_json:
            click.echo(LINE.format("id", "state", "submitted", "instructions", "model", "archive"))
        for job in islice(client.jobs(**filters), limit):
            click.echo(job.model_dump_json() if as_json else _line(job))


def _line(job: Job) -> str:
    done = f"{job.progress.complete:,}/{job.progress.instructions:,}"
    return LINE.format(job.id, job.state, _local(job.created)[:16], done, job.model, job.archive)


def _show(job: Job) -> None:
    reason = f": {job.reason}" if job.reason else ""
    click.echo(f"job      {job.id}\nstate    {job.state}{reason}")
    click.echo(f"models   {', '.join(part.model for part in job.archives)}")
    show_archives(job)
    for name in ("created", "started", "finished", "expires"):
        if time := getattr(job, name):
            click.echo(f"{name:<8} {_local(time)}")
    for name, value in job.metadata.items():
        click.echo(f"metadata {name}={value}")
    for warning in job.warnings:
        click.echo(f"warning: {warning}", err=True)
    if job.ended:
        show_outcome(job)
    else:
        click.echo(f"progress {counts(job)}")


def _local(time: str) -> str:
    return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M:%S}"
