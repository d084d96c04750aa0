"""`sparcom submit`: check a file of instructions here, send it to a server, and watch the job if asked to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.counts import describe_counts
from sparcom_cli.shared.options import INPUT_HELP, extraction_options, make_extraction_options

if TYPE_CHECKING:
    from sparcom_cli.shared.client import Client


@click.command()
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="The server.")
@click.option(
    "--input",
    "file",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help=INPUT_HELP,
)
@click.option("--model", help="A served model; needed where several are served.")
@click.option("--archive", help="Name of the archive; derived from model and time where not given.")
@click.option("--dataset", help="Name of the data set; the file's name where not given.")
@extraction_options
@click.option("--wait", is_flag=True, help="Show progress until the job has ended.")
def submit(
    server: str, file: Path, model: str | None, archive: str | None, dataset: str | None, wait: bool, **options: Any
) -> None:
    """Send instructions to a server.

    Exit status 1 when the job, or with --wait any instruction of it, failed or was cancelled.
    """
    body = build_body(file, model, archive, dataset, options)
    from sparcom_cli.shared.client import Client

    with Client(server) as client:
        job = client.submit(body)
        click.echo(f"job      {job['id']}\narchive  {job['links']['zarr']}\npath     {job['archive_path']}")
        for warning in job.get("warnings", []):
            click.echo(f"warning: {warning}", err=True)
        if wait and not conclude(_watch(client, job)):
            sys.exit(1)


def build_body(
    file: Path, model: str | None, archive: str | None, dataset: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The request's body, from a file and options that are checked here, so that problems come with line numbers.

    Raises:
        InvalidInputError: naming every problem.
    """
    from sparcom_data.instructions.files import default_dataset_name, read_instructions

    instructions = [item.model_dump(mode="json", exclude_defaults=True) for item in read_instructions(file)]
    body: dict[str, Any] = {
        "instructions": instructions,
        "options": make_extraction_options(**options).model_dump(mode="json"),
        "dataset": {"name": default_dataset_name(file) if dataset is None else dataset},
    }
    given = {"model": model, "archive": archive}
    return body | {name: value for name, value in given.items() if value is not None}


def _watch(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Show a bar until the job has ended; the job as it ended."""
    try:
        return _show_bar(client.watch(job["id"]), job)
    except KeyboardInterrupt:
        address = job["links"]["self"]
        click.echo(f"stopped watching; the job goes on. To cancel it: curl -X DELETE {address}", err=True)
        sys.exit(130)


def _show_bar(reports: Iterator[dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("queued", total=job["progress"]["instructions"], numbers="")
        for job in reports:
            done, numbers = describe(job)
            bar.update(task, completed=done, description=job["state"], numbers=numbers)
    return job


def describe(job: dict[str, Any]) -> tuple[int, str]:
    """Instructions that are complete, and the words beside the bar."""
    progress = job["progress"]
    words = [describe_counts(progress, progress["instructions"])]
    if job["state"] == "queued":
        words.append(f"after {job['queue_position'] or 0} other jobs")
    if progress["tokens_per_second"]:
        words.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if job["state"] == "running" and progress["seconds_left"] is not None:
        minutes, seconds = divmod(round(progress["seconds_left"]), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return progress["complete"], " · ".join(words)


def is_complete(job: dict[str, Any]) -> bool:
    """Whether the job ran to its end and every instruction is complete."""
    progress = job["progress"]
    return bool(job["state"] == "complete" and progress["complete"] == progress["instructions"])


def conclude(job: dict[str, Any]) -> bool:
    """Say how the job ended; whether every instruction is complete."""
    progress, complete = job["progress"], is_complete(job)
    click.echo(
        f"{'incomplete' if job['state'] == 'complete' and not complete else job['state']}: "
        f"{describe_counts(progress, progress['instructions'])}; {progress['tokens_done']} tokens "
        f"in {progress['seconds']:.1f} s"
    )
    if job["error"]:
        click.echo(f"error: {job['error']['message']}", err=True)
    for failure in job["failures"]:
        click.echo(f"failed: {failure['id']}: {failure['error']}", err=True)
    if (more := progress["failed"] - len(job["failures"])) > 0:
        click.echo(f"failed: {more} more; the archive's instruction/error says why", err=True)
    return complete
