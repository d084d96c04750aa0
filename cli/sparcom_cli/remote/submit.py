"""`sparcom submit`: send a file of instructions to a server and, with --wait, watch the job."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from sparcom_cli.remote.show import show_archives, show_outcome
from sparcom_cli.remote.values import Duration, metadata_option
from sparcom_cli.shared.options import (
    EXTRACTION_OPTIONS,
    extraction_options,
    input_option,
    make_extraction_options,
    optional,
    server_options,
)


@click.command()
@server_options
@input_option
@click.option("--model", help="Run on this served model; required if the server has several.")
@click.option("--tuned", help="Run on this fine-tuned model too, into a second archive.")
@optional("--archive", None, "from the model and the time", "Name the archive.")
@optional("--dataset", None, "the file's name", "Name the data set.")
@extraction_options
@click.option("--analysis", is_flag=True, help="Analyze the archives on the server once they are complete.")
@metadata_option("Attach a key and a value for your own use; `sparcom jobs` finds them.")
@optional("--expires", Duration(), "never", "Delete the job and its archives after this time, such as 12h or 7d.")
@optional(
    "--idempotency-key",
    None,
    "a new one",
    "Mark the submission: the same command with the same key returns the first job. Not for more than 8 MiB.",
)
@click.option("--wait", is_flag=True, help="Show progress until the job ends.")
def submit(
    server: str,
    key: str | None,
    source: Path,
    wait: bool,
    metadata: dict[str, str],
    expires: timedelta | None,
    **options: Any,
) -> None:
    """Send instructions to a server.

    More than 8 MiB are uploaded as a file first. Exit status 1 if the server refused the job; with --wait also if the
    job or an instruction failed or was cancelled.
    """
    extraction = make_extraction_options(**{name: options.pop(name) for name in EXTRACTION_OPTIONS})
    from sparcom_client import Client

    with Client(server, key) as client:
        job = client.submit(source, options=extraction, metadata=metadata, expires=expires, **options)
        click.echo(f"job      {job.id}")
        show_archives(job)
        if not wait:
            return
        try:
            job = client.wait(job)
        except KeyboardInterrupt:
            click.echo(f"stopped watching; the job continues. To cancel it: sparcom cancel {job.id}", err=True)
            sys.exit(130)
        for warning in job.warnings:
            click.echo(f"warning: {warning}", err=True)
        show_outcome(job)
        if job.links.analysis and job.succeeded:
            click.echo(f"analysis {job.links.analysis}")
        if not job.succeeded:
            sys.exit(1)
