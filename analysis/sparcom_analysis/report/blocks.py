"""What the report is made of: sections of figures with their sentences, tables, and plain text. Plain holders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparcom_analysis.tables.formats import Table

MOST_ROWS = 200  # rows of a table that the page shows; the files hold all


@dataclass(frozen=True, slots=True)
class Block:
    """One thing on the page.

    text: a figure's sentence, a table's title, a heading, or the text itself. name: of a figure's file. look: what kind
    of drawing it is, for those who do not see it. table: where it is one. unfolded: whether it is seen at once.
    """

    kind: Literal["figure", "table", "text", "note", "heading"]
    text: str
    name: str = ""
    look: str = ""
    table: Table | None = None
    unfolded: bool = False

    @property
    def rows(self) -> list[list[str]]:
        """The first rows of a table, rounded for people."""
        return [] if self.table is None else self.table.texts()[:MOST_ROWS]

    @property
    def hidden(self) -> int:
        """Rows that are not shown."""
        return 0 if self.table is None else max(0, len(self.table.rows) - MOST_ROWS)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with an entry in its table of contents."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def figure(name: str, look: str, sentence: str) -> Block:
    """A figure, what kind of drawing it is, and the sentence below it."""
    return Block("figure", sentence, name, look)


def table(one: Table, title: str = "", *, unfolded: bool = False) -> Block:
    """A table under its title, which folds it in and out."""
    return Block("table", title or one.title, table=one, unfolded=unfolded)


def text(words: str) -> list[Block]:
    """A paragraph; none where there is nothing to say."""
    return [Block("text", words.strip())] if words.strip() else []


def note(words: str) -> Block:
    """A paragraph that stands out."""
    return Block("note", words)


def heading(words: str) -> Block:
    """A heading within a section."""
    return Block("heading", words[:1].upper() + words[1:])
