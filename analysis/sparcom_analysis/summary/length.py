"""Puts what length explains into the part `length_matched` of metrics.json, a table, and a plain sentence."""

from __future__ import annotations

import numpy as np

from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.length import LengthMatched, LengthMatchedCategory, LengthMatchedNeurons, MatchedMatrix
from sparcom_analysis.statistics.length_control import LengthControl, MatchedNeurons, left_out_by_category
from sparcom_analysis.statistics.matrix_pair import MatrixPair, MatrixPairIntervals
from sparcom_analysis.summary.numbers import nulls
from sparcom_analysis.tables.formats import Table
from sparcom_analysis.tables.intervals import without_empty_ends

SAME_ORDER = 0.9  # rank correlation from which the sentence says that the order is kept
CHANGED_ORDER = 0.5  # and below which it says that it is not


def length_part(control: LengthControl) -> LengthMatched:
    """The part of metrics.json; the first component says which instructions the draw is over."""
    first = control.neurons[0]
    facts = first.matched.token_facts
    assert facts.drawn is not None  # noqa: S101  (match_neurons saw to it)
    labels, codes = category_labels(first.plain.categories), category_codes(first.plain.categories)
    used = np.bincount(codes[first.places], minlength=len(labels))
    short = left_out_by_category(first.plain, first.matched)
    return LengthMatched(
        tokens=facts.drawn,
        seed=facts.seed,
        used=len(first.matched),
        too_short=facts.too_short,
        by_category=[
            LengthMatchedCategory(category=name, used=int(count), too_short=short[name])
            for name, count in zip(labels, used, strict=True)
        ],
        components=[_neurons(item) for item in control.neurons],
        ise_correlation=None if control.experts is None else _matrix(control.experts.correlation),
        ise_correlation_without_self=None if control.experts is None else _matrix(control.experts.without_self),
    )


def _neurons(item: MatchedNeurons) -> LengthMatchedNeurons:
    plain, matched = item.size_by_length
    return LengthMatchedNeurons(
        component=item.plain.population.component,
        mean_isn=float(item.matched.sizes.mean()),
        mean_isn_plain=float(item.plain.sizes[item.places].mean()),
        size_by_length=matched,
        size_by_length_plain=plain,
        isn_similarity=_matrix(item.similarity),
        isn_similarity_without_self=_matrix(item.without_self),
    )


def _matrix(pair: MatrixPair) -> MatchedMatrix:
    change, names = pair.largest_change, list(pair.categories)
    plain, matched = pair.diagonal_largest
    return MatchedMatrix(
        categories=names,
        matrix=nulls(pair.matched),
        plain=nulls(pair.plain),
        difference=nulls(pair.difference),
        **_ends(pair.intervals),
        rank_correlation=pair.rank_correlation,
        mean_change=pair.mean_change,
        largest_change=None if change is None else change.value,
        largest_change_of=None if change is None else [names[change.row], names[change.column]],
        compared_rows=pair.compared_rows,
        diagonal_largest=matched,
        diagonal_largest_plain=plain,
    )


def _ends(found: MatrixPairIntervals | None) -> dict[str, list[list[float | None]]]:
    """The fields of both ends; none where nothing was drawn."""
    if found is None:
        return {}
    parts = {"": found.matched, "plain_": found.plain, "difference_": found.difference}
    low = {f"{name}low": nulls(interval.low) for name, interval in parts.items()}
    return low | {f"{name}high": nulls(interval.high) for name, interval in parts.items()}


def length_sentence(part: LengthMatched, matrix: MatchedMatrix, alone: MatchedMatrix, subject: str) -> str:
    """Whether the picture changes with T matched.

    Args:
        matrix: what the figure shows. alone: the same without pairs of an instruction with itself; whether a category
            resembles itself most is counted in it. subject: whose matrix it is, what "in" may stand before.
    """
    text = f"With {part.tokens} tokens of each instruction in place of all, "
    rho, change, cell = matrix.rank_correlation, matrix.largest_change, matrix.largest_change_of
    if change is None or cell is None:
        return f"{text}nothing can be compared in {subject}."
    if rho is None:
        text += f"the order of category pairs in {subject} cannot be compared: there are too few that differ."
    else:
        kept = "keep" if rho >= SAME_ORDER else "partly keep" if rho >= CHANGED_ORDER else "do not keep"
        text += f"the pairs of categories {kept} their order by {subject} (rank correlation {rho:.2f})."
    where = f"within {cell[0]}" if cell[0] == cell[1] else f"between {cell[0]} and {cell[1]}"
    how = f"Values change by {matrix.mean_change:+z.3f} on average, most {where} ({change:+z.3f})"
    text += f" {how if change else 'No value changes'}."
    if alone.compared_rows:
        text += (
            f" {alone.diagonal_largest} of {alone.compared_rows} categories resemble themselves more than any other, "
            f"with all tokens {alone.diagonal_largest_plain} (no instruction compared with itself)."
        )
    if part.too_short:
        left = "instruction with fewer tokens is" if part.too_short == 1 else "instructions with fewer tokens are"
        text += f" {part.too_short} {left} in neither."
    return text


def size_sentence(part: LengthMatched, neurons: LengthMatchedNeurons) -> str:
    """Whether the size of an instruction's set follows its length, with all tokens and with T matched."""
    plain, matched = neurons.size_by_length_plain, neurons.size_by_length
    if plain is None:
        return "Instructions are all of one length, or their sets of one size: size cannot follow length."
    text = (
        f"Set size and number of tokens have a rank correlation of {plain:+z.2f} ({TITLES[neurons.component]}; "
        f"{_neuron_count(neurons.mean_isn_plain)} a set on average)"
    )
    end = "all sets are of one size" if matched is None else f"it is {matched:+z.2f}"
    return f"{text}; with {part.tokens} tokens of each, {end} ({neurons.mean_isn:,.0f})."


def _neuron_count(mean: float) -> str:
    return f"{mean:,.1f} neurons" if mean < 10 else f"{mean:,.0f} neurons"


def length_table(part: LengthMatched, matrix: MatchedMatrix, name: str, title: str) -> Table:
    """Every pair of categories: plain, matched, difference, each with its interval where there are any."""
    names = matrix.categories
    columns = {
        "plain": matrix.plain,
        "plain_low": matrix.plain_low,
        "plain_high": matrix.plain_high,
        "matched": matrix.matrix,
        "matched_low": matrix.low,
        "matched_high": matrix.high,
        "difference": matrix.difference,
        "difference_low": matrix.difference_low,
        "difference_high": matrix.difference_high,
    }
    cells = [(i, j) for i in range(len(names)) for j in range(i, len(names))]
    table = Table(
        name=name,
        title=title,
        columns=["category", "other", *columns],
        rows=[[names[i], names[j], *(None if v is None else v[i][j] for v in columns.values())] for i, j in cells],
        note=f"Matched: {part.tokens} tokens drawn of each of {part.used} instructions, seed {part.seed}; plain: all "
        "tokens of the same instructions.",
    )
    return without_empty_ends(table)
