"""`sparcom delete`: delete an archive from a server's disk after confirmation."""

from __future__ import annotations

import click

from sparcom_cli.shared.options import server_option
from sparcom_cli.shared.text import describe_counts


@click.command()
@click.argument("name")
@server_option
@click.option("--yes", is_flag=True, help="Delete without asking.")
def delete(name: str, server: str, yes: bool) -> None:
    """Delete the archive NAME from a server's disk. This cannot be undone.

    The server refuses while a queued or running extraction uses the archive.
    """
    from sparcom_cli.shared.client import Client

    with Client(server) as client:
        if not yes:
            archive = client.archive(name)
            model, size = archive["attributes"]["model"]["id"], archive["bytes"] / 1e6
            counts = archive["instructions"]
            click.echo(f"{archive['path']}: {model}, {describe_counts(counts, sum(counts.values()))}, {size:,.1f} MB")
            click.confirm(f"Delete the archive {name}?", abort=True)
        client.delete_archive(name)
    click.echo(f"deleted {name}")
