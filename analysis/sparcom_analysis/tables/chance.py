"""Tables and sentences about what chance explains, from the parts of metrics.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.chance import ChanceTests, MatrixTests
from sparcom_analysis.tables.experts import all_label
from sparcom_analysis.tables.formats import Cell, Table

LEVEL = 0.05  # p up to which a sentence says that something is more than chance
JOINT = (
    "These tests reject that the names mean nothing at all: that one is named does not say that it would be without "
    "the other categories."
)  # of three categories drawn alike beside one that is unlike them, each of the three is named in 35 to 44 % of runs


def category_tests_table(part: ChanceTests, matrix: MatrixTests, suffix: str = "") -> Table:
    """Of each category, and over all: mean within, mean with others, and p of their difference.

    Args:
        suffix: ends the name of the table, as for a further component.
    """
    rows: list[list[Cell]] = [
        [name, within, others, _difference(within, others), p, adjusted]
        for name, within, others, p, adjusted in zip(
            matrix.categories,
            matrix.category_within,
            matrix.category_others,
            matrix.category_p,
            matrix.category_p_adjusted,
            strict=True,
        )
    ]
    difference = _difference(matrix.within, matrix.between)
    rows.append([all_label(matrix.categories), matrix.within, matrix.between, difference, matrix.p, None])
    return Table(
        f"{_kind(matrix)}_tests{suffix}",
        f"Categories against chance, {subject(matrix)}",
        ["category", "within", "with others", "difference", "p", "p corrected"],
        rows,
        f"{_shuffles(part)} Pairs of an instruction with itself are left out. p corrected: Westfall and Young, for "
        f"{len(matrix.categories)} categories. {JOINT}",
        ["", ".3f", ".3f", ".3f", ".4f", ".4f"],
    )


def pair_tests_table(
    part: ChanceTests, matrix: MatrixTests, similarity: Sequence[Sequence[float | None]], suffix: str = ""
) -> Table:
    """Of every two categories: their similarity, what chance gives, and p; the most alike first.

    Args:
        similarity: the matrix without self pairs that was tested, category by category.
        suffix: ends the name of the table, as for a further component.
    """
    count = len(matrix.categories)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count) if similarity[a][b] is not None]
    pairs.sort(key=lambda pair: -(similarity[pair[0]][pair[1]] or 0.0))
    return Table(
        f"{_kind(matrix)}_pair_tests{suffix}",
        f"Pairs of categories against chance, {subject(matrix)}",
        ["category", "and", "similarity", "expected", "p", "p corrected"],
        [
            [
                matrix.categories[a],
                matrix.categories[b],
                similarity[a][b],
                matrix.expected,
                matrix.pair_p[a][b],
                matrix.pair_p_adjusted[a][b],
            ]
            for a, b in pairs
        ],
        f"{_shuffles(part)} Expected: the mean over all pairs of instructions. p: more alike than two random groups of "
        f"instructions of these sizes. p corrected: Westfall and Young, for {len(pairs)} "
        f"{'pair' if len(pairs) == 1 else 'pairs'}. {JOINT}",
        ["", "", ".3f", ".3f", ".4f", ".4f"],
    )


def chance_sentence(part: ChanceTests, matrix: MatrixTests) -> str:
    """What the tests say, in plain words."""
    if matrix.p is None or matrix.within is None or matrix.between is None:
        return (
            f"Whether categories are more than names cannot be tested for {subject(matrix)}: it needs two categories, "
            "one of them with two instructions."
        )
    verdict = "more alike than chance makes them" if matrix.p <= LEVEL else "no more alike than chance could make them"
    text = (
        f"Instructions of the same category are {verdict} ({subject(matrix)}: {matrix.within:.3f} within categories, "
        f"{matrix.between:.3f} between, means over all pairs of instructions, to which a larger "
        f"category adds more; p = {matrix.p:.4f} from {part.permutations:,} shuffles of the categories' names)."
    )
    found = [_named(matrix), _paired(matrix)]
    return "".join([text, *found, f" {JOINT}" if any(_significant(matrix)) else ""])


def _named(matrix: MatrixTests) -> str:
    tested = [(name, p) for name, p in zip(matrix.categories, matrix.category_p_adjusted, strict=True) if p is not None]
    found = [name for name, p in tested if p <= LEVEL]
    if not found:
        tests = "1 test" if len(tested) == 1 else f"{len(tested)} tests"
        return f" No single category differs from shuffled names after correction for {tests}."
    if len(found) == len(tested):
        which = f"Each of the {len(tested)} categories is" if len(tested) > 1 else f"{found[0]} is"
        return f" {which} more alike than shuffled names make it (p ≤ {LEVEL}, corrected for as many tests)."
    return (
        f" Of {len(tested)} categories {len(found)} {'is' if len(found) == 1 else 'are'} more alike than shuffled "
        f"names make {'it' if len(found) == 1 else 'them'} (p ≤ {LEVEL}, corrected for as many tests): "
        f"{', '.join(found)}."
    )


def _significant(matrix: MatrixTests) -> Iterator[bool]:
    """Of every category and every two of them, whether the tests name it."""
    rows = [matrix.category_p_adjusted, *matrix.pair_p_adjusted]
    return (p is not None and p <= LEVEL for row in rows for p in row)


def _paired(matrix: MatrixTests) -> str:
    names = matrix.categories
    found = [
        f"{names[a]} and {names[b]}"
        for a, row in enumerate(matrix.pair_p_adjusted)
        for b, p in enumerate(row)
        if a < b and p is not None and p <= LEVEL
    ]
    if not found:
        return ""
    return f" More alike than two random groups of instructions (p ≤ {LEVEL}, corrected): {'; '.join(found)}."


def subject(matrix: MatrixTests) -> str:
    """What was compared, in words."""
    if matrix.component is None:
        return "expert correlation, equation 14"
    return f"similarity of ISN sets in {TITLES[matrix.component]}, equation 10"


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _shuffles(part: ChanceTests) -> str:
    return f"One-sided p from {part.permutations:,} shuffles of the categories' names over the instructions."


def _kind(matrix: MatrixTests) -> str:
    return "ise" if matrix.component is None else "isn"
