"""`sparcom delete`: delete an archive from a server's disk after confirmation."""

from __future__ import annotations

import click

from sparcom_cli.shared.options import server_options
from sparcom_data.progress import describe_counts


@click.command()
@click.argument("name")
@server_options
@click.option("--yes", is_flag=True, help="Delete without asking.")
def delete(name: str, server: str, key: str | None, yes: bool) -> None:
    """Delete the archive NAME from a server's disk. This cannot be undone.

    The server refuses while a queued or running extraction uses the archive.
    """
    from sparcom_client import Client

    with Client(server, key) as client:
        if not yes:
            archive = client.archive(name)
            model, counts = archive.attributes["model"]["id"], archive.instructions
            about = f"{model}, {describe_counts(counts, sum(counts.values()))}, {archive.bytes / 1e6:,.1f} MB"
            click.echo(f"{archive.path or name}: {about}")
            click.confirm(f"Delete the archive {name}?", abort=True)
        client.delete_archive(name)
    click.echo(f"deleted {name}")
