"""`sparcom delete`: remove an archive from a server's disk, after a question."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="The server.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def delete(name: str, server: str, yes: bool) -> None:
    """Delete the archive NAME from a server's disk. This cannot be undone.

    The server refuses while an extraction that has not ended holds the archive.
    """
    from sparcom_cli.shared.client import Client
    from sparcom_cli.shared.counts import describe_counts

    with Client(server) as client:
        if not yes:
            archive = client.archive(name)
            model, size = archive["attributes"]["model"]["id"], archive["bytes"] / 1e6
            counts = archive["instructions"]
            click.echo(f"{archive['path']}: {model}, {describe_counts(counts, sum(counts.values()))}, {size:,.1f} MB")
            click.confirm(f"Delete the archive {name}?", abort=True)
        client.delete_archive(name)
    click.echo(f"deleted {name}")
