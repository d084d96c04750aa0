"""`sparcom dataset check`: shows what a check of instruction files found, by rule, and says whether they pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from sparcom_hexainst.check.findings import Group, Report

_FILE = click.Path(dir_okay=False, path_type=Path)
_SHOWN = 8
_NARROWEST = 88  # a table on fewer columns would lose names or numbers; a terminal that has fewer wraps its lines


@click.command()
@click.argument("files", nargs=-1, type=_FILE)
@click.option(
    "--against",
    multiple=True,
    type=_FILE,
    help="A file whose texts must not stand in the checked ones (a source, a test set, training data). Repeatable.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A model's folder, or a tokenizer.json: give lengths in its tokens too.",
)
@click.option("--language", default="en", show_default=True, help="Language of the texts, ISO 639-1.")
@click.option("--strict", is_flag=True, help="Fail on warnings, and on what could not be checked, as on errors.")
@click.option("--all", "everything", is_flag=True, help=f"Show every finding, not {_SHOWN} of a rule.")
@click.option("--json", "report_file", type=_FILE, help="Write the whole report there as JSON.")
def check(
    files: tuple[Path, ...],
    against: tuple[Path, ...],
    tokenizer: Path | None,
    language: str,
    strict: bool,
    everything: bool,
    report_file: Path | None,
) -> None:
    """Check instruction FILES as one set; without FILES the 600 synthetic ones of HexaInst.

    A file holds JSON lines, a JSON array or CSV; - reads standard input.

    Exit status 0 where no rule is broken, 1 where one is.
    """
    from sparcom_hexainst.build.synthetic import synthetic_files
    from sparcom_hexainst.check.check import CheckOptions, check_files

    options = CheckOptions(against=against, tokenizer=tokenizer, language=language)
    report = check_files(files or synthetic_files(), options)
    if report_file:
        _write(report, report_file)
    _show(report, None if everything else _SHOWN)
    raise SystemExit(1 if report.count("error") or (strict and (report.findings or report.skipped)) else 0)


def _write(report: Report, file: Path) -> None:
    from sparcom_data.errors import StorageError

    try:
        file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the report could not be written ({error}); name another file with --json") from error


def _literal(text: str) -> str:
    """What files hold may steer a terminal: control characters and the like are spelt out."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _show(report: Report, limit: int | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    from sparcom_hexainst.check.findings import RULES

    width = max(Console().width, _NARROWEST)
    console = Console(highlight=False, soft_wrap=True, emoji=False, width=width)
    console.print(_groups_table(report.groups))
    for rule, (level, sentence) in RULES.items():
        found = report.of(rule)
        if not found:
            continue
        colour = "red" if level == "error" else "yellow"
        console.print(f"[{colour}]{level}[/] [bold]{rule}[/]: {sentence}; {len(found)} found")
        for finding in found[:limit]:
            place = f"{finding.where} ({finding.id})" if finding.id else finding.where
            console.print(_literal(f"  {place}: {finding.message}"), markup=False)
        if limit and len(found) > limit:
            console.print(f"  … and {len(found) - limit} more (--all shows them)")
    for skipped in report.skipped:
        console.print(f"[yellow]not checked[/]: {escape(_literal(skipped))}")
    console.print(_verdict(report))


def _groups_table(groups: list[Group]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("category", "half"):
        table.add_column(name, overflow="fold")
    for name in ("instructions", "words", "tokens", "openings"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        lengths = [
            f"{found.shortest} / {found.median:g} / {found.longest}" if found else "-"
            for found in (group.words, group.tokens)
        ]
        numbers = [str(group.instructions), *lengths, str(group.openings)]
        names = [Text(_literal(name) or "-") for name in (group.category, group.half)]
        table.add_row(*names, *numbers)
    table.caption = "words and tokens: shortest / median / longest; openings: different first three words"
    table.caption_justify = "left"
    return table


def _verdict(report: Report) -> str:
    errors, warnings = report.count("error"), report.count("warning")
    verdict = "[red]fails[/]" if errors else "[green]passes[/]"
    return f"{report.instructions} instructions: {verdict}, {errors} errors, {warnings} warnings"
