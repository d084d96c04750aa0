"""Text that several commands print: counts, progress, failures, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import click

SHOWN_FAILURES = 10
MIN_CELL_WIDTH = 5


def print_failures(failures: Iterable[tuple[str, str]], total: int) -> None:
    """Print the first failed instructions on standard error, and how many more of `total` there are.

    Args:
        failures: (id, error) of failed instructions; may be fewer than `total`.
    """
    shown = list(islice(failures, SHOWN_FAILURES))
    for instruction_id, error in shown:
        click.echo(f"  failed {instruction_id!r}: {error}", err=True)
    if total > len(shown):
        click.echo(f"  and {total - len(shown):,} more; see instruction/error in the archive", err=True)


def format_table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None]]]) -> list[str]:
    """Return aligned lines: the header, then one line per (label, values) with three decimals, or "n/a" for None."""
    cells = [("", list(header))]
    cells += [(label, ["n/a" if value is None else f"{value:.3f}" for value in values]) for label, values in rows]
    left = max(len(label) for label, _ in cells)
    widths = [max(MIN_CELL_WIDTH, len(name)) for name in header]
    return [
        f"{label:<{left}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for label, row in cells
    ]
