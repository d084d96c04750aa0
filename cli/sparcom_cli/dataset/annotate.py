"""`sparcom dataset annotate`: write a form for judging instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sparcom_cli.shared.options import AT_LEAST_1, FILE

if TYPE_CHECKING:
    from sparcom_hexainst.annotation.make import DataSet

DATA = click.Path(exists=True, path_type=Path)
KIND = click.Choice(["html", "csv"])


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=DATA)
@click.option("--output", required=True, type=FILE, help="Write the form to this new file.")
@click.option("--sample", type=AT_LEAST_1, help="Draw this many instructions per category.", show_default="all")
@click.option("--seed", default=0, help="Seed the sample and the order.")
@click.option(
    "--format", "kind", type=KIND, help="Write a web page (html) or a table (csv).", show_default="by --output's name"
)
def annotate(
    files: tuple[Path, ...], output: Path, sample: int | None, seed: int, kind: Literal["html", "csv"] | None
) -> None:
    """Write a form for judging the instructions of FILE... (or folders of *.jsonl).

    The form asks for grammar, redundancy, category and clarity. It hides categories, sources and ids.

    HTML is one page that works offline and saves answers to a file; CSV is for spreadsheet programs. Give the same
    form to two people, then run `sparcom dataset agreement`.
    """
    from sparcom_hexainst.annotation.make import make_form
    from sparcom_hexainst.annotation.page import render_page
    from sparcom_hexainst.annotation.table import render_table

    data = read_data_set(files)
    form = make_form(data, sample=sample, seed=seed)
    table = kind == "csv" or (kind is None and output.suffix.lower() == ".csv")
    if table and output.suffix.lower() != ".csv":
        raise click.UsageError(
            f"the name of a table must end in .csv, so that it is recognized when read; {output} does not"
        )
    write_form(output, render_table(form) if table else render_page(form).encode())
    counts = Counter(data.by_id[item.id].category or "no category" for item in form.items)
    listed = ", ".join(f"{count} {printable(name)}" for name, count in sorted(counts.items()))
    click.echo(f"{output}: {len(form.items)} items ({listed}), in an order shuffled by seed {seed}")
    click.echo("Give this file to two people who work independently. Then run: sparcom dataset agreement FIRST SECOND")


def read_data_set(paths: Sequence[Path]) -> DataSet:
    """Read instruction files, and the *.jsonl files of folders sorted by name."""
    from sparcom_hexainst.annotation.make import read_data

    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise click.UsageError(
                f"{path} holds no *.jsonl files; give instruction files, or a folder that holds some"
            )
        found += inside
    return read_data(found)


def write_form(path: Path, content: bytes) -> None:
    """Write a form. Refuse to replace a file with other content: a table may hold somebody's answers."""
    from sparcom_data.storage import write_file

    if path.exists() and path.read_bytes() != content:
        raise click.UsageError(
            f"{path} already exists and may hold somebody's answers; choose another name, or remove it"
        )
    write_file(path, [content])


def printable(text: str) -> str:
    """Replace control characters with spaces, so that users' text stays on one line of a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
