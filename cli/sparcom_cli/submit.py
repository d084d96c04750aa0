"""`sparcom submit`: check a file of instructions, send it to a server and, with --wait, watch the job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import extraction_options, input_option, make_extraction_options, server_option
from sparcom_cli.shared.progress import progress_bar
from sparcom_cli.shared.text import describe_counts, describe_progress, print_failures

if TYPE_CHECKING:
    from sparcom_cli.shared.client import Client


@click.command()
@server_option
@input_option
@click.option("--model", help="Run on this served model; required if the server has several.")
@click.option("--archive", help="Name the archive.", show_default="from the model and the time")
@click.option("--dataset", help="Name the data set.", show_default="the file's name")
@extraction_options
@click.option("--wait", is_flag=True, help="Show progress until the job ends.")
def submit(
    server: str, source: Path, model: str | None, archive: str | None, dataset: str | None, wait: bool, **options: Any
) -> None:
    """Send instructions to a server.

    Exit status 1 if the server refused the job; with --wait also if the job or an instruction failed or was cancelled.
    """
    from sparcom_data.instructions.files import default_dataset_name, read_instructions

    # Validated here too, so that problems name the file's lines.
    body: dict[str, Any] = {
        "instructions": [item.model_dump(mode="json", exclude_defaults=True) for item in read_instructions(source)],
        "options": make_extraction_options(**options).model_dump(mode="json"),
        "dataset": {"name": default_dataset_name(source) if dataset is None else dataset},
    }
    body |= {name: value for name, value in (("model", model), ("archive", archive)) if value is not None}
    from sparcom_cli.shared.client import Client

    with Client(server) as client:
        job = client.submit(body)
        click.echo(f"job      {job['id']}\narchive  {job['links']['zarr']}\npath     {job['archive_path']}")
        for warning in job.get("warnings", []):
            click.echo(f"warning: {warning}", err=True)
        if wait and not _report(_watch(client, job)):
            sys.exit(1)


def _watch(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Show a bar until the job ends; return the job in its final state."""
    ended = job
    try:
        with progress_bar("queued") as update:
            for ended in client.watch(job["id"]):
                done, note = describe(ended)
                update(done, ended["progress"]["instructions"], note, label=f"{ended['state']:<9}")
    except KeyboardInterrupt:
        address = job["links"]["self"]
        click.echo(f"stopped watching; the job continues. To cancel it: curl -X DELETE {address}", err=True)
        sys.exit(130)
    return ended


def describe(job: dict[str, Any]) -> tuple[int, str]:
    """Return the number of complete instructions and the text beside the bar."""
    progress = dict(job["progress"])
    if job["state"] != "running":
        progress["seconds_left"] = None
    queued = [f"after {job['queue_position'] or 0} other jobs"] if job["state"] == "queued" else []
    return progress["complete"], describe_progress(progress, *queued)


def _report(job: dict[str, Any]) -> bool:
    """Print how the job ended; return whether every instruction is complete."""
    progress, state = job["progress"], job["state"]
    complete = state == "complete" and progress["complete"] == progress["instructions"]
    click.echo(
        f"{'incomplete' if state == 'complete' and not complete else state}: "
        f"{describe_counts(progress, progress['instructions'])}; {progress['tokens_done']} tokens "
        f"in {progress['seconds']:.1f} s"
    )
    if job["error"]:
        click.echo(f"error: {job['error']['message']}", err=True)
    print_failures(((failure["id"], failure["error"]) for failure in job["failures"]), progress["failed"])
    return bool(complete)
