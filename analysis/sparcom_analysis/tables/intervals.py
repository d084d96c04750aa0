"""Columns for the ends of intervals, which tables have only where intervals were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sparcom_analysis.tables.formats import Table

T = TypeVar("T")


def without_empty_ends(table: Table) -> Table:
    """The table without its columns that end in low and high where none of them has a value."""
    places = [at for at, name in enumerate(table.columns) if name.endswith(("low", "high"))]
    if any(row[at] is not None for row in table.rows for at in places):
        return table
    rows = [_others(row, places) for row in table.rows]
    return replace(table, columns=_others(table.columns, places), rows=rows, formats=_others(table.formats, places))


def _others(row: Sequence[T], places: Sequence[int]) -> list[T]:
    return [cell for at, cell in enumerate(row) if at not in places]
