"""One table as CSV, Markdown and LaTeX: whatever the cells hold, columns and values stay what they were."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.tables.formats import Cell, Table
from sparcom_data.errors import InvalidInputError

LETTERS = st.text(st.sampled_from("ab|\\*_`[]<>&$%#{}~^\"'-,;\n\r \té中"), max_size=8)
CELLS = st.one_of(LETTERS, st.integers(-9999, 9999), st.floats(allow_infinity=False), st.none())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5), names=st.lists(LETTERS, min_size=3, max_size=3)
)
def test_csv_reads_back_without_loss(rows: list[list[Cell]], names: list[str]) -> None:
    """Every cell is read back, floats to the last digit; what has no value is empty; formats change nothing."""
    text = Table("some", "title", names, rows, formats=[".1f"] * 3).csv()
    found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert found[0] == names
    for cells, read in zip(rows, found[1:], strict=True):
        for cell, field in zip(cells, read, strict=True):
            if cell is None or (isinstance(cell, float) and math.isnan(cell)):
                assert field == ""
            else:
                assert type(cell)(field) == cell


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(LETTERS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_markdown_keeps_its_columns(rows: list[list[str]]) -> None:
    """Each row is one line with a pipe between cells and no other that is not escaped; text comes back."""
    lines = Table("some", "title", ["first", "second"], rows).markdown().splitlines()[2:]
    assert lines[1] == "| --- | --- |"
    for cells, line in zip(rows, lines[2:], strict=True):
        bare = [" ".join(cell.split()) for cell in cells]
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert re.sub(r"\\(.)", r"\1", line) == f"| {bare[0]} | {bare[1]} |"


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(LETTERS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_latex_keeps_its_columns(rows: list[list[str]]) -> None:
    """Each row has one bare ampersand and ends in a line break; no special letter is left that TeX would act on."""
    lines = Table("some", "title", ["first", "second"], rows).latex().splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    for line, _ in zip(body, rows, strict=True):
        assert line.endswith(r" \\")
        bare = re.sub(r"\\[a-z]+[0-9]*\{\}|\\[&%$#_{}]|\{[\[*]\}|(?<=[-'])\{\}", "", line.removesuffix(r" \\"))
        assert re.fullmatch(r"[^\\%$#_{}~^<>|\"`\[&]*&[^\\%$#_{}~^<>|\"`\[&]*", bare)
        assert "--" not in line
        assert "''" not in line


def test_numbers_are_rounded_for_people() -> None:
    """A column's format rounds its numbers; without one whole numbers stay and others have three decimals."""
    table = Table("some", "All of it", ["a", "b", "c", "d"], [[1, 0.12345, -0.5, None], [2, 1.0, 0.25, "x_y"]])
    shaped = Table("some", "All of it", table.columns, table.rows, "A | B.", ["", "", ".1%", ""])
    assert table.markdown() == (
        "**All of it**\n\n| a | b | c | d |\n| ---: | ---: | ---: | --- |\n"
        "| 1 | 0.123 | −0.500 | – |\n| 2 | 1.000 | 0.250 | x\\_y |\n"
    )
    assert shaped.markdown().endswith("| 1 | 0.123 | −50.0% | – |\n| 2 | 1.000 | 25.0% | x\\_y |\n\nA \\| B.\n")
    assert shaped.latex() == (
        "\\begin{table}\n\\centering\n\\caption{All of it}\n\\label{tab:some}\n\\begin{tabular}{rrrl}\n\\toprule\n"
        "a & b & c & d \\\\\n\\midrule\n1 & 0.123 & $-$50.0\\% & \\textendash{} \\\\\n"
        "2 & 1.000 & 25.0\\% & x\\_y \\\\\n\\bottomrule\n\\end{tabular}\n"
        "\\par\\smallskip{\\footnotesize A \\textbar{} B.}\n\\end{table}\n"
    )


@pytest.mark.parametrize("text", [Table.csv, Table.markdown, Table.latex])
def test_numbers_of_numpy_and_no_number_at_all(text: Callable[[Table], str]) -> None:
    """NumPy's numbers read like Python's, and NaN is no value, never the text nan."""
    table = Table("some", "t", ["a", "b", "c"], [[np.float64(0.5), np.nan, float("nan")]])
    assert "nan" not in text(table)
    assert "float64" not in text(table)


def test_what_rounds_to_zero_has_no_sign() -> None:
    """A difference of less than the last digit shown reads 0, not minus 0; one that is shown keeps its sign."""
    table = Table("some", "t", ["a", "b"], [[-0.0001, -0.0004], [-0.001, -0.0006]], formats=["", ".1%"])
    assert table.markdown().splitlines()[4:] == ["| 0.000 | 0.0% |", "| −0.001 | −0.1% |"]


def test_what_is_no_table_is_refused() -> None:
    """Rows or formats of another width, or a name that no file can have: every problem is said."""
    with pytest.raises(InvalidInputError) as caught:
        Table("My table", "t", ["a", "b"], [[1, 2], [1]], formats=["", "", ""])
    assert len(caught.value.problems) == 3
    assert "row 1 1 entries" in str(caught.value)
