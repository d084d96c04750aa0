"""Similarities with T matched beside the plain ones over the same instructions, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import category_similarity, expert_correlation, instruction_experts, instruction_specific_neurons
from sparcom_analysis.figures.length import matched_figure, size_figure
from sparcom_analysis.figures.neurons import to_png, to_svg
from sparcom_analysis.archive.categories import category_labels
from sparcom_analysis.archive.token_draw import TokenDraw
from sparcom_analysis.schema.length import LengthMatched, MatchedMatrix
from sparcom_analysis.statistics.length_control import length_control, match_experts, match_neurons
from sparcom_analysis.resampling.ranks import rank_correlation
from sparcom_analysis.summary.length import length_part, length_sentence, length_table, size_sentence
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError


def means(values: NDArray[np.float64], names: list[str], order: list[str], *, own: bool) -> NDArray[np.float64]:
    """Category means of pair values, float64 (n, n), pair by pair; NaN where there is none."""
    out = np.full((len(order), len(order)), np.nan)
    for a, b in product(range(len(order)), repeat=2):
        found = [
            values[i, j]
            for i, j in product(range(len(names)), repeat=2)
            if (names[i], names[j]) == (order[a], order[b]) and (own or i != j)
        ]
        if found:
            out[a, b] = np.mean(found)
    return out


def jaccard(sets: list[set[Any]]) -> NDArray[np.float64]:
    """Of all pairs, 0 for two empty sets."""
    return np.array([[len(a & b) / len(a | b) if a | b else 0.0 for b in sets] for a in sets]).reshape(len(sets), -1)


def sets_of(neurons: Any, chosen: list[int]) -> list[set[Any]]:
    """ISN sets of these instructions as Python sets."""
    return [{tuple(where) for where in np.argwhere(neurons.mask(k)).tolist()} for k in chosen]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 14), min_size=6, max_size=9),
    categories=st.lists(st.sampled_from(["a", "", "(none)", "(not drawn)"]), min_size=9, max_size=9),
    m=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_both_matrices_are_over_the_instructions_long_enough(  # type: ignore[no-untyped-def]
    make_case, lengths: list[int], categories: list[str], m: int, seed: int
) -> None:
    """Plain and matched are means over pairs of the same instructions, whatever the categories are called."""
    names = categories[: len(lengths)]
    chosen = [k for k, length in enumerate(lengths) if length >= m]
    if len(chosen) < 2:
        return
    archive = make_case(lengths, names, seed=seed).archive
    plain = instruction_specific_neurons(archive, epsilon=0.2)
    (item,) = length_control(archive, [plain], draw=TokenDraw(m, seed)).neurons
    order = list(dict.fromkeys(names))
    kept = [names[k] for k in chosen]
    for pair, own in ((item.similarity, True), (item.without_self, False)):
        assert pair.categories == category_labels(names)
        left = means(jaccard(sets_of(plain, chosen)), kept, order, own=own)
        right = means(jaccard(sets_of(item.matched, list(range(len(chosen))))), kept, order, own=own)
        np.testing.assert_allclose(pair.plain, left, rtol=0, atol=1e-12)
        np.testing.assert_allclose(pair.matched, right, rtol=0, atol=1e-12)
    sizes = plain.sizes[chosen], item.matched.sizes
    assert item.size_by_length == tuple(rank_correlation(np.array(lengths)[chosen], size) for size in sizes)
    part = length_part(length_control(archive, [plain], draw=TokenDraw(m, seed)))
    assert [(entry.used, entry.too_short) for entry in part.by_category] == [
        (kept.count(name), names.count(name) - kept.count(name)) for name in order
    ]
    assert (part.used, part.too_short, part.tokens, part.seed) == (len(chosen), len(lengths) - len(chosen), m, seed)


def test_experts_are_compared_over_the_same_instructions(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Equation 14 of the instructions long enough, with all their tokens and with those drawn."""
    archive = make_moe(lengths=(4, 14), per_category=6, categories=("a", "b", "c")).archive
    experts = instruction_experts(archive)
    draw = TokenDraw(9, 3)
    matched = instruction_experts(archive, tokens=draw)
    chosen = [k for k, index in enumerate(experts.instruction) if index in matched.instruction]
    assert 3 < len(chosen) < len(experts)
    found = length_control(archive, [], experts, draw).experts
    assert found is not None
    for side, measured, places in (
        ("plain", experts, chosen),
        ("matched", matched, list(range(len(matched)))),
    ):
        r = np.corrcoef([measured.frequencies(k).ravel() for k in places])
        names = [measured.categories[k] for k in places]
        for pair, own in ((found.correlation, True), (found.without_self, False)):
            np.testing.assert_allclose(
                getattr(pair, side), means(r, names, ["a", "b", "c"], own=own), rtol=0, atol=1e-12
            )


def versions(part: LengthMatched) -> tuple[MatchedMatrix, MatchedMatrix]:
    """Similarity with pairs of an instruction with itself, and without."""
    one = part.components[0]
    return one.isn_similarity, one.isn_similarity_without_self


def test_where_all_have_m_tokens_nothing_changes(make_moe) -> None:  # type: ignore[no-untyped-def]
    """With m = T for all the matrices are the plain measures, the differences 0 and the order kept."""
    archive = make_moe(lengths=(10, 10), categories=("a", "b", "c")).archive
    neurons, experts = instruction_specific_neurons(archive), instruction_experts(archive)
    control = length_control(archive, [neurons], experts)
    similarity = category_similarity(neurons)
    np.testing.assert_array_equal(control.neurons[0].similarity.plain, similarity.matrix)
    np.testing.assert_array_equal(control.neurons[0].similarity.matched, similarity.matrix)
    np.testing.assert_array_equal(control.neurons[0].without_self.matched, similarity.without_self)
    assert control.experts is not None
    correlation = expert_correlation(experts)
    np.testing.assert_array_equal(control.experts.correlation.matched, correlation.matrix)
    np.testing.assert_array_equal(control.experts.without_self.matched, correlation.without_self)
    assert control.neurons[0].similarity.rank_correlation == 1.0
    assert control.neurons[0].size_by_length == (None, None)
    part = length_part(control)
    said = length_sentence(part, *versions(part), "x")
    assert "keep their order by x (rank correlation 1.00). No value changes." in said
    assert "size cannot follow length" in size_sentence(part, part.components[0])


def test_special_tokens_stay_left_out(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The matched measure takes rows, rule and special tokens of the plain one."""
    archive = make_moe(lengths=(12, 20)).archive
    options: Any = {"special_tokens": "leave_out", "special_token_ids": list(range(0, 1000, 4))}
    plain = instruction_specific_neurons(archive, threshold=0.5, component="neuron", **options)
    control = length_control(archive, [plain], instruction_experts(archive, **options), TokenDraw(5))
    matched = control.neurons[0].matched
    assert replace(matched.token_facts, drawn=None, too_short=0) == plain.token_facts
    assert (matched.selection, matched.population, matched.rows) == (plain.selection, plain.population, plain.rows)


def test_measures_that_differ_in_more_than_the_draw_are_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Another rule, component, archive or choice of tokens would be taken for an effect of length."""
    first, second = make_moe(lengths=(9, 12)).archive, make_moe(lengths=(2, 12), seed=1).archive
    plain = instruction_specific_neurons(first)
    matched = instruction_specific_neurons(first, tokens=TokenDraw())
    others = (
        plain,
        instruction_specific_neurons(first, threshold=0.5, tokens=TokenDraw()),
        instruction_specific_neurons(first, component="neuron", tokens=TokenDraw()),
        instruction_specific_neurons(first, tokens=TokenDraw(5), special_tokens="leave_out", special_token_ids=[1]),
        replace(instruction_specific_neurons(second, tokens=TokenDraw(9)), token_facts=matched.token_facts),
    )
    for other in others:
        with pytest.raises(InvalidInputError, match=r"Select both alike|Make both with the same options"):
            match_neurons(plain, other)
    with pytest.raises(InvalidInputError, match="first without a draw"):
        match_experts(instruction_experts(first, tokens=TokenDraw(5)), instruction_experts(first, tokens=TokenDraw(5)))
    counts = make_moe(granularity="count").archive
    with pytest.raises(UnsupportedArchiveError, match="of which none can be taken away"):
        length_control(counts, [instruction_specific_neurons(counts)])


@pytest.fixture
def part_and_control(make_moe) -> Any:  # type: ignore[no-untyped-def]
    """A control in which some are too short."""
    archive = make_moe(lengths=(6, 20), per_category=8, categories=("a$b", "b", "c")).archive
    plain = [instruction_specific_neurons(archive, component=name) for name in ("expert_neuron", "neuron")]
    control = length_control(archive, plain, instruction_experts(archive), TokenDraw(10))
    return length_part(control), control


def test_the_part_is_what_the_schema_says(part_and_control) -> None:  # type: ignore[no-untyped-def]
    """It survives JSON, has a part for every component, and every cell of the table is one of the matrix."""
    part, _ = part_and_control
    assert LengthMatched.model_validate_json(part.model_dump_json()) == part
    assert [item.component for item in part.components] == ["expert_neuron", "neuron"]
    matrix = part.components[1].isn_similarity
    table = length_table(part, matrix, "length_matched-neuron", "Similarity with T matched")
    assert len(table.rows) == 6
    assert table.rows[1] == ["a$b", "b", matrix.plain[0][1], matrix.matrix[0][1], matrix.difference[0][1]]
    assert table.csv().startswith("category,other,plain,matched,difference\r\n")
    assert all(field.description for field in LengthMatched.model_fields.values())


def test_sentences_say_the_numbers_of_the_part(part_and_control) -> None:  # type: ignore[no-untyped-def]
    """Order, largest change with its cell, diagonals, who was left out, and how size follows length."""
    part, _ = part_and_control
    matrix = part.components[0].isn_similarity
    alone = part.components[0].isn_similarity_without_self
    text = length_sentence(part, matrix, alone, "the model")
    assert "With 10 tokens of each instruction in place of all, the pairs of categories " in text
    assert f"(rank correlation {matrix.rank_correlation:.2f})" in text
    assert f"change by {matrix.mean_change:+.3f} on average, most " in text
    assert f" ({matrix.largest_change:+.3f}). " in text
    assert (matrix.diagonal_largest, alone.diagonal_largest) == (3, 1)
    assert " 1 of 3 categories resemble themselves more than any other, with all tokens " in text
    assert f" {part.too_short} instructions with fewer tokens are in neither." in text
    orders = {0.95: "keep", 0.7: "partly keep", 0.2: "do not keep"}
    for rho, words in orders.items():
        changed = matrix.model_copy(update={"rank_correlation": rho})
        expected = f"the pairs of categories {words} their order by the model (rank correlation {rho:.2f})"
        assert expected in length_sentence(part, changed, alone, "the model")
    unknown = matrix.model_copy(update={"rank_correlation": None})
    assert "cannot be compared" in length_sentence(part, unknown, alone, "x")
    nothing = matrix.model_copy(update={"largest_change": None, "largest_change_of": None})
    assert length_sentence(part, nothing, alone, "x").endswith("nothing can be compared in x.")
    assert f"a rank correlation of {part.components[0].size_by_length_plain:+.2f} (routed experts; " in size_sentence(
        part, part.components[0]
    )


def test_figures_are_drawn_the_same_every_time(part_and_control) -> None:  # type: ignore[no-untyped-def]
    """Two maps of one colour scale and two panels of points; the same numbers give the same bytes; cells may lack."""
    part, control = part_and_control
    matrix = part.components[0].isn_similarity
    figures = [matched_figure(part, matrix, "Similarity", "mean Jaccard index") for _ in range(2)]
    assert to_svg(figures[0]) == to_svg(figures[1])
    left, right = (axes.images[0].get_clim() for axes in figures[0].axes[:2])
    assert left == right
    points = size_figure(control.neurons[0], "a model")
    assert part.too_short > 0
    assert [sum(len(group.get_offsets()) for group in axes.collections) for axes in points.axes] == [part.used] * 2
    assert [len(axes.collections) for axes in points.axes] == [3, 3]
    for axes in points.axes:
        for x, y in np.concatenate([group.get_offsets() for group in axes.collections]):  # type: ignore[arg-type]
            assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
            assert axes.get_ylim()[0] < y < axes.get_ylim()[1]
    assert to_png(points).startswith(b"\x89PNG")
    empty = matrix.model_copy(update={"plain": [[None] * 3] * 3, "matrix": [[None] * 3] * 3})
    assert to_png(matched_figure(part, empty, "Similarity", "mean Jaccard index")).startswith(b"\x89PNG")
