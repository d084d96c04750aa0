"""Tables as CSV, LaTeX and rounded cells keep columns and values, for any content."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.measures.neurons import similarity
from sparcom_analysis.plotting.fitting import visible
from sparcom_analysis.report.tables import Table, csv_bytes, for_people, from_frame, measure_frames, rounded

LETTERS = st.text(st.sampled_from("ab|\\*_`[]<>&$%#{}~^\"'-,;\n\r \té中"), max_size=8)
FLOATS = st.floats(allow_infinity=False)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(LETTERS, st.integers(-9999, 9999), FLOATS), min_size=1, max_size=5))
def test_csv_reads_back_without_loss(rows: list[tuple[str, int, float]]) -> None:
    """Every cell is read back, floats exactly; missing values are empty."""
    frame = xr.Dataset({name: ("row", list(held)) for name, held in zip("abc", zip(*rows, strict=True), strict=True)})
    text = csv_bytes(frame.to_dataframe().reset_index(drop=True)).decode()
    found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert found[0] == ["a", "b", "c"]
    for cells, read in zip(rows, found[1:], strict=True):
        assert read[:2] == [cells[0], str(cells[1])]
        assert read[2] == "" if math.isnan(cells[2]) else float(read[2]) == cells[2]


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(LETTERS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_latex_keeps_its_columns(rows: list[list[str]]) -> None:
    """Each row has one bare ampersand and ends in a line break; all special characters are escaped."""
    lines = Table(["first", "second"], rows).latex("title", "some").decode().splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    for line, _ in zip(body, rows, strict=True):
        assert line.endswith(r" \\")
        bare = re.sub(r"\\[a-z]+[0-9]*\{\}|\\[&%$#_{}]|\{[\[*]\}|(?<=[-'])\{\}", "", line.removesuffix(r" \\"))
        assert re.fullmatch(r"[^\\%$#_{}~^<>|\"`\[&]*&[^\\%$#_{}~^<>|\"`\[&]*", bare)
        assert "--" not in line
        assert "''" not in line


def test_latex_uses_booktabs() -> None:
    """The table has caption, label, rules and rounded cells in the right order."""
    table = Table(["a", "b", "c"], [[1, -0.5, "x_y"], [2, None, "≤ 1"]])
    assert table.latex("50% (SPARCOM, eq. 10).", "some").decode() == (
        "\\begin{table}\n\\centering\n\\caption{50\\% (SPARCOM, eq. 10).}\n\\label{tab:some}\n"
        "\\begin{tabular}{rrl}\n\\toprule\na & b & c \\\\\n\\midrule\n1 & $-$0.500 & x\\_y \\\\\n"
        "2 & \\textendash{} & $\\leq$ 1 \\\\\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


@pytest.mark.parametrize(
    ("cell", "column", "text"),
    [
        (0.12345, "", "0.123"),
        (-0.5, "", "−0.500"),
        (-0.0001, "", "0.000"),
        (12345, "", "12,345"),
        (np.float64(0.25), "", "0.250"),
        (True, "", "yes"),
        ("x_y", "", "x_y"),
        (52.73, "", "52.7"),
        (2485.55, "", "2,486"),
        (0.0001, "pvalue", "0.0001"),
    ],
)
def test_cells_are_rounded(cell: object, column: str, text: str) -> None:
    """Three decimals, separators, a Unicode minus sign; rounded zeros have no sign; p-values keep two digits."""
    assert rounded(cell, column) == text


def test_a_measure_without_tables_gets_a_tidy_one(make_measure: Callable[..., Any], curves: xr.Dataset) -> None:
    """It has a row per cell of `value`, with the variables of the same shape; a table of the measure keeps its named
    index.
    """
    (frame,) = measure_frames(make_measure("some", None), curves).values()
    assert list(frame.columns) == ["category", "layer", "value"]
    np.testing.assert_array_equal(frame["value"], curves["value"].values.ravel())
    own = make_measure("some", None, tables=lambda ds: {"own": ds["counted"].to_dataframe()})
    assert [*measure_frames(own, curves)["own"].columns] == ["category", "counted"]


def test_matrices_show_their_intervals(runs: dict[str, xr.DataTree]) -> None:
    """Two axes of categories become a matrix; each cell has its value and interval, in the order of the Dataset."""
    ds = runs["dense"]["similarity"].to_dataset()
    (frame,) = measure_frames(similarity.MEASURE, ds).values()
    plain, shown = (for_people(ds, from_frame(frame), intervals) for intervals in (False, True))
    assert plain.columns == ["self_pairs", "category", *ds["category"].values]
    np.testing.assert_array_equal([row[2:] for row in plain.rows], ds["value"].values.reshape(-1, 2))
    value, low, high = (float(ds[name].values[1, 0, 1]) for name in ("value", "ci_low", "ci_high"))
    assert shown.rows[2][3] == f"{value:.3f} ({low:.3f}–{high:.3f})"
    assert shown.numeric == [False] * 4


def test_control_characters_are_replaced() -> None:
    """Control characters become U+FFFD; line breaks stay."""
    assert visible("a\x00b\x1b\x85\n\ud800c") == "a\ufffdb\ufffd\x85\n\ufffdc"
