"""`sparcom dataset check`: check instruction files and print the findings by rule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparcom_cli.shared.options import FILE, PATH, optional

if TYPE_CHECKING:
    from rich.table import Table

    from sparcom_hexainst.check.findings import Group, Report

SHOWN_FINDINGS = 8
MIN_WIDTH = 88  # a narrower table would lose names or numbers; a narrower terminal wraps its lines


@click.command()
@click.argument("files", nargs=-1, type=FILE)
@optional("--against", FILE, None, "Report texts that also occur in this file. Repeatable.", multiple=True)
@optional("--tokenizer", PATH, None, "Also count tokens with this tokenizer.json, or with that of a model's folder.")
@click.option("--language", default="en", help="Expect texts in this language, ISO 639-1.")
@click.option("--strict", is_flag=True, help="Fail on warnings and skipped checks as well as on errors.")
@click.option("--all", "show_all", is_flag=True, help=f"Show all findings instead of {SHOWN_FINDINGS} per rule.")
@click.option("--json", "report_file", type=FILE, help="Write the whole report to this file as JSON.")
def check(
    files: tuple[Path, ...],
    against: tuple[Path, ...],
    tokenizer: Path | None,
    language: str,
    strict: bool,
    show_all: bool,
    report_file: Path | None,
) -> None:
    """Check instruction FILES as one set; without FILES, check the 600 synthetic instructions of HexaInst.

    A file holds JSON lines, a JSON array or CSV; - reads standard input.

    Exit status 1 if there is an error, or with --strict also a warning or a skipped check; otherwise 0.
    """
    from sparcom_data.errors import StorageError
    from sparcom_hexainst.build.synthetic import synthetic_files
    from sparcom_hexainst.check.check import CheckOptions, check_files

    options = CheckOptions(against=against, tokenizer=tokenizer, language=language)
    report = check_files(files or synthetic_files(), options)
    if report_file:
        try:
            report_file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"the report could not be written ({error}); name another file with --json") from error
    _print(report, None if show_all else SHOWN_FINDINGS)
    raise SystemExit(1 if report.count("error") or (strict and (report.findings or report.skipped)) else 0)


def _escaped(text: str) -> str:
    """Escape control characters: text from files must not control the terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _print(report: Report, limit: int | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    from sparcom_hexainst.check.findings import RULES

    width = max(Console().width, MIN_WIDTH)
    console = Console(highlight=False, soft_wrap=True, emoji=False, width=width)
    console.print(_groups_table(report.groups))
    for rule, (level, sentence) in RULES.items():
        found = report.of(rule)
        if not found:
            continue
        color = "red" if level == "error" else "yellow"
        console.print(f"[{color}]{level}[/] [bold]{rule}[/]: {sentence}; {len(found)} found")
        for finding in found[:limit]:
            location = f"{finding.where} ({finding.id})" if finding.id else finding.where
            console.print(_escaped(f"  {location}: {finding.message}"), markup=False)
        if limit and len(found) > limit:
            console.print(f"  … and {len(found) - limit} more (--all shows them)")
    for skipped in report.skipped:
        console.print(f"[yellow]not checked[/]: {escape(_escaped(skipped))}")
    errors, warnings = report.count("error"), report.count("warning")
    verdict = "[red]fails[/]" if errors else "[green]passes[/]"
    console.print(f"{report.instructions} instructions: {verdict}, {errors} errors, {warnings} warnings")


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
        labels = [Text(_escaped(name) or "-") for name in (group.category, group.half)]
        table.add_row(*labels, str(group.instructions), *lengths, str(group.openings))
    table.caption = "words and tokens: shortest / median / longest; openings: distinct first three words"
    table.caption_justify = "left"
    return table
