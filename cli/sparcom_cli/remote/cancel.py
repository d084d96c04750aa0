"""`sparcom cancel`: cancel extractions on a server."""

from __future__ import annotations

import click

from sparcom_cli.shared.options import server_options


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@server_options
def cancel(job_ids: tuple[str, ...], server: str, key: str | None) -> None:
    """Cancel the extractions with these IDs. Instructions that are complete stay in the archive.

    A running extraction is cancelled after its current step. Exit status 1 if one has ended already.
    """
    from sparcom_client import Client

    with Client(server, key) as client:
        for job_id in job_ids:
            click.echo(f"{job_id}  {client.cancel(job_id).state}")
