"""`sparcom dataset agreement`: compare two annotators' answers and print agreement, disputes and verdicts.

Users' text is printed without control characters and never as markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparcom_cli.dataset.annotate import DATA, printable, read_data_set, write_form
from sparcom_cli.shared.options import FILE, option, optional

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sparcom_hexainst.agreement.schema import AgreementReport, CriterionAgreement, Verdict

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SHOWN_ITEMS = 50


@click.command()
@click.argument("first", type=EXISTING_FILE)
@click.argument("second", type=EXISTING_FILE)
@optional("--data", DATA, None, "Read the form's instructions from this file or folder. Repeatable.", multiple=True)
@optional("--adjudicate", FILE, None, "Write a form with the disputed items to this file. Requires --data.")
@optional("--adjudicated", EXISTING_FILE, None, "Read a third person's answers to the --adjudicate form.")
@optional("--accepted", FILE, None, "Write the instructions that passed to this file. Requires --data.")
@optional("--output", FILE, None, "Write the whole report to this file as JSON.")
@option("--seed", int, 0, "Seed the bootstrap and the order of the adjudicator's form.")
def agreement(
    first: Path,
    second: Path,
    data: tuple[Path, ...],
    adjudicate: Path | None,
    adjudicated: Path | None,
    accepted: Path | None,
    output: Path | None,
    seed: int,
) -> None:
    """Compare two people's answers, FIRST and SECOND: agreement, Cohen's kappa, and verdicts.

    An item passes if its grammar is correct, its redundancy none, its clarity clear, and its category matches the data.
    """
    if (adjudicate or accepted) and not data:
        raise click.UsageError("--adjudicate and --accepted need the instructions; give their files with --data")
    inputs = {path.resolve() for path in (first, second, *data, adjudicated) if path}
    for path in filter(None, (adjudicate, accepted, output)):
        if not inputs.isdisjoint({path.resolve(), path.resolve().parent}):
            raise click.UsageError(f"{path} is an input of this command or lies inside one; choose another name")
    from sparcom_data.storage import write_file
    from sparcom_hexainst.agreement.disputes import make_adjudication, read_adjudication
    from sparcom_hexainst.agreement.verdict import accepted_lines, passed, report
    from sparcom_hexainst.annotation.page import render_page
    from sparcom_hexainst.annotation.read import read_pair

    instructions = read_data_set(data) if data else None
    pair = read_pair(first, second, instructions)
    third = read_adjudication(adjudicated, pair) if adjudicated else None
    result = report(pair, instructions, third, seed=seed)
    _print(result)
    if output:
        write_file(output, [result.model_dump_json(indent=1).encode() + b"\n"])
    if adjudicate and instructions:
        form = make_adjudication(instructions, pair.first, pair.second, seed=seed)
        write_form(adjudicate, render_page(form).encode())
        click.echo(f"{adjudicate}: {len(form.items)} disputed items for a third person to decide")
    if accepted and instructions:
        ids, judged = passed(result), len(pair.first.items)
        write_file(accepted, [b"".join(accepted_lines(instructions, ids))])
        unseen = len(instructions.instructions) - judged
        left = f"; left out {unseen} instructions that were not in the form" if unseen else ""
        click.echo(f"{accepted}: {len(ids)} of {judged} judged items passed{left}")


def _print(result: AgreementReport) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    one, other = map(printable, result.annotators)
    console.print(f"{one} and {other}, {result.items} items")
    console.print(_summary(result))
    tables = [(part, f"{part.criterion}: rows {one}, columns {other}") for part in result.criteria]
    tables += [
        (given.agreement, f"category: rows data, columns {printable(given.annotator)}") for given in result.against_data
    ]
    for part, title in tables:
        if part.agreed < part.items:
            console.print(_confusion(part, title))
    for part in result.criteria:
        if part.note:
            console.print(f"{part.criterion}: {part.note}", soft_wrap=True)
    _print_outcome(result, console)


def _summary(result: AgreementReport) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("criterion", "items", "agreed", "share", "kappa", "95 % interval"):
        table.add_column(name, justify="left" if name == "criterion" else "right")
    rows = [(part.criterion, part) for part in result.criteria]
    rows += [(f"category, data, {printable(part.annotator)}", part.agreement) for part in result.against_data]
    for name, part in rows:
        kappa = "undefined" if part.kappa is None else f"{part.kappa:.3f}"
        interval = "–" if part.interval is None else f"{part.interval[0]:.3f} to {part.interval[1]:.3f}"
        table.add_row(name, str(part.items), str(part.agreed), f"{part.raw_agreement:.3f}", kappa, interval)
    return table


def _confusion(part: CriterionAgreement, title: str) -> Table:
    from rich.table import Table

    table = Table("", title=title, title_justify="left")
    for value in part.values:
        table.add_column(printable(value), justify="right")
    for value, row in zip(part.values, part.table, strict=True):
        table.add_row(printable(value), *map(str, row))
    return table


def _print_outcome(result: AgreementReport, console: Console) -> None:
    """Print the disputed items, or the verdicts if nothing is disputed."""
    if result.verdicts is None:
        lines = [f"item {part.number} ({printable(part.id)}): {', '.join(part.criteria)}" for part in result.disputes]
        title = f"{len(lines)} of {result.items} items are disputed; a third person must decide"
    else:
        lines = [_verdict_line(verdict) for verdict in result.verdicts if verdict.faults]
        passed = f"{result.items - len(lines)} of {result.items} items passed"
        title = passed + ("; correct or drop these" if lines else "")
    console.print(f"{title}{':' if lines else ''}")
    for line in lines[:SHOWN_ITEMS]:
        console.print(f"  {line}", soft_wrap=True)
    if len(lines) > SHOWN_ITEMS:
        console.print(f"  and {len(lines) - SHOWN_ITEMS} more; --output writes all")
    if result.verdicts is not None and not result.against_data:
        console.print("categories were not compared with the data; give its files with --data")


def _verdict_line(verdict: Verdict) -> str:
    faults = ", ".join(f"{part.criterion} {part.verdict}, not {part.expected}" for part in verdict.faults)
    comments = "".join(f" “{comment}”" for comment in verdict.comments)
    return f"item {verdict.number} ({printable(verdict.id)}): {printable(faults)}{printable(comments)}"
