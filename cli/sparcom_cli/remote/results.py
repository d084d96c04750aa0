"""`sparcom results`: download what became of each instruction."""

from __future__ import annotations

from typing import TextIO

import click

from sparcom_cli.shared.options import option, server_options


@click.command()
@click.argument("job_id", metavar="ID")
@server_options
@click.option("--errors", is_flag=True, help="Write failed and cancelled instructions instead of complete ones.")
@option(
    "--output", click.File("w", encoding="utf-8", atomic=True), "-", "Write to this file; - writes to standard output."
)
def results(job_id: str, server: str, key: str | None, errors: bool, output: TextIO) -> None:
    """Write one JSON line per complete instruction of an extraction: lengths, first row, response.

    Works while the extraction runs, with the instructions that are complete so far.
    """
    from sparcom_client import Client

    with Client(server, key) as client:
        lines = client.errors(job_id) if errors else client.results(job_id)
        output.writelines(f"{line.model_dump_json()}\n" for line in lines)
