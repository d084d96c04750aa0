"""`sparcom dataset annotate` and `sparcom dataset agreement`: forms for people, and what their answers come to.

Options, and what is printed; all else is sparcom_hexainst. What people wrote is printed without control characters
and never as markup.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sparcom_hexainst.agreement.schema import AgreementReport, CriterionAgreement, Verdict
    from sparcom_hexainst.annotation.make import DataSet
    from sparcom_hexainst.annotation.read import Pair
    from sparcom_hexainst.annotation.schema import Form

_IN = click.Path(exists=True, dir_okay=False, path_type=Path)
_DATA = click.Path(exists=True, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)
LISTED = 50  # items that the terminal names


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_DATA)
@click.option("--output", required=True, type=_OUT, help="The form to write; must not be there yet.")
@click.option("--sample", type=click.IntRange(min=1), help="Instructions of each category.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of sample and order.")
@click.option(
    "--format", "kind", type=click.Choice(["html", "csv"]), help="[default: csv where the name ends so, else html]"
)
def annotate(
    files: tuple[Path, ...], output: Path, sample: int | None, seed: int, kind: Literal["html", "csv"] | None
) -> None:
    """Write a form by which people judge the instructions of FILE... (or folders of *.jsonl).

    They are asked for grammar, redundancy, category and clarity.

    HTML is one page that works from a disk, loads nothing and saves answers to a file; CSV is for spreadsheet programs.
    Categories, sources and ids are not shown. Give the same form to two people, then see `sparcom dataset agreement`.
    """
    from sparcom_hexainst.annotation.make import make_form, read_data
    from sparcom_hexainst.annotation.page import render_page
    from sparcom_hexainst.annotation.table import render_table

    data = read_data(instruction_files(files))
    form = make_form(data, sample=sample, seed=seed)
    table = kind == "csv" or (kind is None and output.suffix.lower() == ".csv")
    if table and output.suffix.lower() != ".csv":
        raise click.UsageError(f"a table must be named FILE.csv, by which it is known when it comes back; not {output}")
    _write_new(output, render_table(form) if table else render_page(form).encode())
    click.echo(f"{output}: {_counted(form, data)}, in an order shuffled by seed {seed}")
    click.echo("Give this same file to two people, each alone; then: sparcom dataset agreement FIRST SECOND")


@click.command()
@click.argument("first", type=_IN)
@click.argument("second", type=_IN)
@click.option(
    "--data", "files", multiple=True, type=_DATA, help="File or folder that the form was made of; repeatable."
)
@click.option("--adjudicate", type=_OUT, help="Write a form with what the two disagree on. Needs --data.")
@click.option("--adjudicated", type=_IN, help="A third person's answers to that form.")
@click.option("--accepted", type=_OUT, help="Write the lines of the data that passed. Needs --data.")
@click.option("--output", type=_OUT, help="Write everything as JSON.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap and of the adjudicator's form.")
def agreement(
    first: Path,
    second: Path,
    files: tuple[Path, ...],
    adjudicate: Path | None,
    adjudicated: Path | None,
    accepted: Path | None,
    output: Path | None,
    seed: int,
) -> None:
    """Compare the answers FIRST and SECOND of two people: agreement, Cohen's kappa, and verdicts.

    An item passes where its grammar is correct, its redundancy none, its clarity clear, and its category the data's.
    """
    from sparcom_hexainst.agreement.disputes import make_adjudication, read_adjudication
    from sparcom_hexainst.agreement.verdict import report
    from sparcom_hexainst.annotation.make import read_data
    from sparcom_hexainst.annotation.page import render_page
    from sparcom_hexainst.annotation.read import read_pair

    if (adjudicate or accepted) and not files:
        raise click.UsageError("--adjudicate and --accepted need the instructions: give their files with --data")
    _keep_inputs({first, second, *files, adjudicated}, {adjudicate, accepted, output})
    data = read_data(instruction_files(files)) if files else None
    pair = read_pair(first, second, data)
    third = read_adjudication(adjudicated, pair) if adjudicated else None
    result = report(pair, data, third, seed=seed)
    _show(result)
    if output:
        _write(output, result.model_dump_json(indent=1).encode() + b"\n")
    if adjudicate and data:
        form = make_adjudication(data, pair.first, pair.second, seed=seed)
        _write_new(adjudicate, render_page(form).encode())
        click.echo(f"{adjudicate}: {len(form.items)} items to decide, for a third person")
    if accepted and data:
        _write_accepted(accepted, data, result, pair)


def instruction_files(paths: tuple[Path, ...]) -> list[Path]:
    """The files, and in the place of a folder its files of JSON lines, by name."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise click.UsageError(f"{path} holds no *.jsonl: give files of instructions, or a folder with some")
        found += inside
    return found


def _keep_inputs(read: set[Path | None], written: set[Path | None]) -> None:
    """Refuse to write over what is read."""
    inputs = {path.resolve() for path in read if path}
    for path in written:
        if path and (path.resolve() in inputs or path.resolve().parent in inputs):
            raise click.UsageError(f"{path} is, or lies in, what this command reads: take another name")


def _write_accepted(path: Path, data: DataSet, result: AgreementReport, pair: Pair) -> None:
    from sparcom_hexainst.agreement.verdict import accepted_lines, passed

    ids = passed(result)
    _write(path, b"".join(accepted_lines(data, ids)))
    unseen = len(data.instructions) - len(pair.first.items)
    left = f"; {unseen} of the data were not in the form and are left out" if unseen else ""
    click.echo(f"{path}: {len(ids)} of {len(pair.first.items)} judged items passed{left}")


def _write(path: Path, content: bytes) -> None:
    from sparcom_data.storage import write_file

    write_file(path, [content])


def _write_new(path: Path, content: bytes) -> None:
    """Write a form, unless another file is there: a table may hold somebody's answers."""
    if path.exists() and path.read_bytes() != content:
        raise click.UsageError(
            f"{path} must not be there yet, since it may hold somebody's answers: take another name, or remove it"
        )
    _write(path, content)


def _counted(form: Form, data: DataSet) -> str:
    counts = Counter(data.by_id[item.id].category or "no category" for item in form.items)
    return f"{len(form.items)} items ({', '.join(f'{count} {plain(name)}' for name, count in sorted(counts.items()))})"


def plain(text: str) -> str:
    """Text of users for a terminal: on one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _show(result: AgreementReport) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    one, other = map(plain, result.annotators)
    console.print(f"{one} and {other}, {result.items} items")
    console.print(_summary(result))
    for part in result.criteria:
        if part.agreed < part.items:
            console.print(_confusion(part, f"{part.criterion}: rows {one}, columns {other}"))
    for given in result.against_data:
        if given.agreement.agreed < given.agreement.items:
            console.print(_confusion(given.agreement, f"category: rows data, columns {plain(given.annotator)}"))
    for part in result.criteria:
        if part.note:
            console.print(f"{part.criterion}: {part.note}", soft_wrap=True)
    _show_outcome(result, console)


def _summary(result: AgreementReport) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("criterion", "items", "agreed", "share", "kappa", "95 % interval"):
        table.add_column(name, justify="left" if name == "criterion" else "right")
    rows = [(part.criterion, part) for part in result.criteria]
    rows += [(f"category, data, {plain(part.annotator)}", part.agreement) for part in result.against_data]
    for name, part in rows:
        kappa = "undefined" if part.kappa is None else f"{part.kappa:.3f}"
        interval = "–" if part.interval is None else f"{part.interval[0]:.3f} to {part.interval[1]:.3f}"
        table.add_row(name, str(part.items), str(part.agreed), f"{part.raw_agreement:.3f}", kappa, interval)
    return table


def _confusion(part: CriterionAgreement, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for value in part.values:
        table.add_column(plain(value), justify="right")
    for value, row in zip(part.values, part.table, strict=True):
        table.add_row(plain(value), *map(str, row))
    return table


def _show_outcome(result: AgreementReport, console: Console) -> None:
    """What is in question, or what is to be mended or dropped."""
    if result.verdicts is None:
        lines = [f"item {part.number} ({plain(part.id)}): {', '.join(part.criteria)}" for part in result.disputes]
        _list(console, f"{len(lines)} of {result.items} items are in question; a third person must decide", lines)
        return
    lines = [_verdict_line(verdict) for verdict in result.verdicts if verdict.faults]
    _list(
        console,
        f"{result.items - len(lines)} of {result.items} items passed" + ("; to be mended or dropped" if lines else ""),
        lines,
    )
    if not result.against_data:
        console.print("categories were not compared with the data's: give its files with --data")


def _verdict_line(verdict: Verdict) -> str:
    why = ", ".join(f"{part.criterion} {part.verdict}, not {part.expected}" for part in verdict.faults)
    remarks = "".join(f" “{comment}”" for comment in verdict.comments)
    return f"item {verdict.number} ({plain(verdict.id)}): {plain(why)}{plain(remarks)}"


def _list(console: Console, title: str, lines: list[str]) -> None:
    console.print(f"{title}{':' if lines else ''}")
    for line in lines[:LISTED]:
        console.print(f"  {line}", soft_wrap=True)
    if len(lines) > LISTED:
        console.print(f"  and {len(lines) - LISTED} more; --output has all")
