r"""Tables as CSV for programs, LaTeX (booktabs) for papers, and rounded cells for the report.

CSV (RFC 4180) keeps every digit and leaves missing values empty. LaTeX rounds, and shows a dash for a missing value.
Non-Latin letters need a Unicode engine (XeLaTeX, LuaLaTeX).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import xarray as xr

from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.plotting.fitting import number, visible

SHOWN = ("ci_low", "ci_high", "pvalue", "pvalue_adjusted", "null_mean")
_LIGATURE = re.compile(r"([-'])(?=\1)")  # TeX joins -- to a dash and '' to a quotation mark
_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_NAMED |= {"`": "asciigrave", "–": "endash", "—": "emdash"}
_MATHEMATICS = {"ε": "varepsilon", "Σ": "Sigma", "×": "times", "·": "cdot", "∩": "cap", "∪": "cup", "≤": "leq"}
_MATHEMATICS |= {"≥": "geq", "→": "rightarrow"}
_LATEX = {
    '"': r"\char34{}",  # \textquotedbl needs another font encoding than the default
    "[": "{[}",  # at the start of a row, LaTeX would read it as an argument of the preceding line break
    "*": "{*}",  # likewise
    "…": r"\ldots{}",
    "−": "$-$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{letter: rf"\text{name}{{}}" for letter, name in _NAMED.items()},
    **{letter: rf"$\{name}$" for letter, name in _MATHEMATICS.items()},
}


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns and rows of cells: text, numbers or booleans. None and NaN mark missing values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def latex(self, caption: str, label: str) -> bytes:
        """Return a LaTeX `table` with a caption, the label `tab:LABEL` and booktabs rules."""
        rows = self.texts(latex_text, r"\textendash{}")
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in self.numeric)}}}",
            r"\toprule",
            " & ".join(map(latex_text, self.columns)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return ("\n".join(lines) + "\n").encode()

    def texts(self, escape: Callable[[str], str] = str, missing: str = "n/a") -> list[list[str]]:
        """Return rounded, escaped cells; missing values become `missing`."""
        named = [list(zip(row, self.columns, strict=True)) for row in self.rows]
        return [[missing if _missing(cell) else escape(rounded(cell, name)) for cell, name in row] for row in named]

    @property
    def numeric(self) -> list[bool]:
        """True for each column without text or booleans."""
        return [not any(isinstance(row[at], (str, bool)) for row in self.rows) for at in range(len(self.columns))]


def measure_frames(measure: Measure, ds: xr.Dataset) -> dict[str, Any]:
    """Return the tidy DataFrames of a measure by name (default: "", all variables with the dimensions of `value`)."""
    if measure.tables is not None:
        frames = dict(measure.tables(ds))
    else:
        dims = ds["value"].dims if "value" in ds else ()
        names = [
            str(name)
            for name, held in ds.data_vars.items()
            if held.dims == dims or (name in SHOWN and held.dims and set(held.dims) <= set(dims))
        ]
        frames = {"": ds[names].to_dataframe(dim_order=list(dims))} if dims else {}
    return {
        name: frame.reset_index() if any(held is not None for held in frame.index.names) else frame
        for name, frame in frames.items()
    }


def csv_bytes(frame: Any) -> bytes:
    """Return a DataFrame as CSV with CR LF line endings; floats round-trip exactly."""
    text: str = frame.to_csv(index=False, lineterminator="\r\n")
    return text.encode("utf-8", "replace")


def from_frame(frame: Any) -> Table:
    """Convert a DataFrame to a Table."""
    columns = [frame.iloc[:, at].tolist() for at in range(len(frame.columns))]
    return Table([str(name) for name in frame.columns], list(zip(*columns, strict=True)))


def for_people(ds: xr.Dataset, table: Table, intervals: bool = False) -> Table:
    """Return a matrix of `value` if it has two category axes, else the tidy table.

    Args:
        intervals: append the confidence interval to each value of the matrix.
    """
    if "value" not in ds or ds["value"].dims[-1:] != ("category_2",):
        return table
    dims, across = [str(dim) for dim in ds["value"].dims[:-1]], ds.sizes["category_2"]
    cells: list[Any] = ds["value"].values.ravel().tolist()
    if intervals and "ci_low" in ds:
        ends = (ds[name].values.ravel().tolist() for name in ("ci_low", "ci_high"))
        cells = [with_interval(*cell) for cell in zip(cells, *ends, strict=True)]
    keys = product(*(ds[dim].values.tolist() for dim in dims))
    rows = [[*key, *cells[at * across : (at + 1) * across]] for at, key in enumerate(keys)]
    return Table([*dims, *map(str, ds["category_2"].values)], rows)


def with_interval(value: float, low: float, high: float) -> str | float:
    """Return "0.512 (0.498–0.531)" or "−0.100 (−0.200 to 0.010)", or the value if it has no interval."""
    return value if math.isnan(low) else f"{rounded(value)} ({rounded(low)}{' to ' if low < 0 else '–'}{rounded(high)})"


def latex_text(text: str) -> str:
    """Escape a text for LaTeX."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in visible(" ".join(text.split())))
    return _LIGATURE.sub(r"\1{}", escaped)


def rounded(cell: Any, column: str = "") -> str:
    """Format a cell: three decimals below 10, one below 1,000, none above; two significant digits for p-values."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    digits = 0 if isinstance(cell, int) or abs(cell) >= 1000 else 1 if abs(cell) >= 10 else 3
    return number(cell, ".2g" if "pvalue" in column else f",.{digits}f")


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
