r"""One table, three texts: CSV for programs, Markdown and LaTeX for people. Knows nothing of what the table is about.

CSV (RFC 4180) keeps every digit and leaves cells without a value empty. Markdown (GitHub's) and LaTeX (booktabs) round
as the maker of the table asks for and show a dash instead; whatever a name holds, it is shown as it is and changes
neither the table's form nor its columns. LaTeX needs `\usepackage{booktabs}`, and letters outside Latin a Unicode
engine (XeLaTeX, LuaLaTeX).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparcom_data.errors import InvalidInputError

Cell = str | int | float | None

DEFAULT_FORMAT = ".3f"
_HIDDEN = re.compile(  # what XML cannot hold, and the controls of terminals: no tab, no line break
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]"
)
_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&$])")
_LIGATURE = re.compile(r"([-'])(?=\1)")  # TeX joins -- to a dash and '' to a quotation mark
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # \textquotedbl needs another font encoding than the default
    "[": "{[}",  # at the start of a row it would be an argument of the line break before it
    "*": "{*}",  # likewise
    "`": r"\textasciigrave{}",
    "ε": r"$\varepsilon$",
    "Σ": r"$\Sigma$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "∩": r"$\cap$",
    "∪": r"$\cup$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": r"$-$",
    "→": r"$\rightarrow$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\ldots{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a name for its file and its label, a title, named columns, rows of cells and a note below.

    rows: a cell is text, a number, or None (as NaN: no value). formats: how the numbers of each column are rounded for
    people, a format specification such as ".1%", or "" for whole numbers as they are and others with three decimals;
    left empty, "" for every column. CSV takes no notice of it.

    Raises:
        InvalidInputError: a row or the formats do not have one entry a column, or the name is no name of a file.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    formats: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(f"a table's name must be small letters, digits, - and _; {self.name!r} is not. Rename it")
        wide = {f"row {at}": len(row) for at, row in enumerate(self.rows)}
        wide |= {"formats": len(self.formats)} if self.formats else {}
        problems += [
            f"table {self.name} has {len(self.columns)} columns, its {what} {count} entries. Give one entry a column"
            for what, count in wide.items()
            if count != len(self.columns)
        ]
        if problems:
            raise InvalidInputError(problems)

    def csv(self) -> str:
        """Header and rows alone, lines end in CR LF, floats so that they are read back without loss."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows([None if _missing(cell) else cell for cell in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Title, table with numbers to the right, note; ends in a line break."""
        ruler = ["---:" if right else "---" for right in self.numeric]
        lines = [
            _markdown_row([_markdown(name) for name in self.columns]),
            _markdown_row(ruler),
            *(_markdown_row(row) for row in self._texts(_markdown, "–")),
        ]
        blocks = [f"**{_markdown(self.title)}**", "\n".join(lines), _markdown(self.note)]
        return "\n\n".join(filter(None, blocks)) + "\n"

    def latex(self) -> str:
        """A `table` with caption, label `tab:NAME`, booktabs rules and the note below; ends in a line break."""
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.title)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in self.numeric)}}}",
            r"\toprule",
            _latex_row([_latex(name) for name in self.columns]),
            r"\midrule",
            *(_latex_row(row) for row in self._texts(_latex, r"\textendash{}")),
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip{{\footnotesize {_latex(self.note)}}}"] if self.note else []),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def texts(self, missing: str = "n/a") -> list[list[str]]:
        """Cells rounded for people, `missing` where there is no value, escaped for nothing."""
        return self._texts(str, missing)

    @property
    def numeric(self) -> list[bool]:
        """Of each column whether no cell of it is text."""
        return [not any(isinstance(row[at], str) for row in self.rows) for at in range(len(self.columns))]

    def _texts(self, escape: Callable[[str], str], missing: str) -> list[list[str]]:
        """Rounded and escaped cells, `missing` where there is no value."""
        formats = self.formats or [""] * len(self.columns)
        return [
            [missing if _missing(cell) else escape(_rounded(cell, how)) for cell, how in zip(row, formats, strict=True)]
            for row in self.rows
        ]


def visible(text: str) -> str:
    """A text for people: characters that no page, drawing or terminal may hold become U+FFFD."""
    return _HIDDEN.sub("\ufffd", text)


def _missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _rounded(cell: Cell, how: str) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    how = how or (DEFAULT_FORMAT if isinstance(cell, float) else "")
    text = format(cell, how)
    if not text.strip("-0.%"):
        text = text.removeprefix("-")  # what rounds to zero has no sign
    return text.replace("-", "−")  # the minus sign, which no line break parts from its number


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in visible(" ".join(text.split())))
    return _LIGATURE.sub(r"\1{}", escaped)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
