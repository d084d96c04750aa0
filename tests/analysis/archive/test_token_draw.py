"""Token draws: tokens drawn, instructions left out, and measures over the drawn tokens."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis import find_ises, find_isns
from sparcom_analysis.archive.counted_rows import TokenDraw, drawn_places
from sparcom_analysis.archive.populations import PopulationName, choose_population
from sparcom_analysis.kernels import compiled as kernels
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError

PINNED = [[0, 2, 3, 4, 8, 15], [4, 9, 12, 14, 17, 19], [0, 2, 6, 12, 16, 17]]


@given(tokens=st.integers(1, 60), data=st.data(), seed=st.integers(0, 2**40), name=st.text(max_size=8))
def test_a_draw_takes_each_token_at_most_once_and_nests(tokens: int, data: st.DataObject, seed: int, name: str) -> None:
    """A draw has m distinct tokens in row order; smaller draws are subsets of larger ones; m = T draws all."""
    m = data.draw(st.integers(1, tokens))
    places = drawn_places(name, tokens, m, seed).tolist()
    assert places == sorted(set(places))
    assert len(places) == m
    assert set(places) <= set(range(tokens))
    assert set(drawn_places(name, tokens, m - 1, seed).tolist()) <= set(places)
    assert drawn_places(name, tokens, tokens, seed).tolist() == list(range(tokens))


def test_draws_never_change_between_releases() -> None:
    """The draw depends only on seed, id and length, on any machine and NumPy version."""
    assert drawn_places("i0", 20, 6, 0).tolist() == PINNED[0]
    assert drawn_places("i0", 20, 6, 1).tolist() == PINNED[1]
    assert drawn_places("ü", 20, 6, 0).tolist() == PINNED[2]


def test_every_token_is_as_likely_as_any_other() -> None:
    """Over 4,000 ids, each of ten tokens is drawn about 2,000 times (within five standard deviations)."""
    seen = Counter(place for k in range(4000) for place in drawn_places(f"i{k}", 10, 5, 0).tolist())
    assert all(abs(seen[place] - 2000) < 5 * np.sqrt(4000 * 0.25) for place in range(10))
    pairs = Counter(tuple(drawn_places(f"i{k}", 4, 2, 3).tolist()) for k in range(4000))
    assert len(pairs) == 6
    assert all(abs(count - 4000 / 6) < 5 * np.sqrt(4000 * 5 / 36) for count in pairs.values())


def drawn_rows(case: Any, index: int, m: int, seed: int) -> list[int]:
    """Drawn rows of an instruction."""
    start, stop = case.rows(index).start, case.rows(index).stop
    return [
        start + place for place in drawn_places(case.archive.instructions.id[index], stop - start, m, seed).tolist()
    ]


def true_counts(case: Any, rows: list[int], population: str) -> dict[tuple[int, ...], int]:
    """c of every neuron over these rows, by (layer, neuron) or (layer, expert, neuron)."""
    truth, counts = case.truth, Counter[tuple[int, ...]]()
    for row in rows:
        if population == "expert_neuron":
            for layer, choice, neuron in np.argwhere(truth.expert_active[row]).tolist():
                counts[layer, int(truth.expert[row, layer, choice]), neuron] += 1
        else:
            masks = truth.masks if population == "neuron" else truth.shared_active
            counts.update((layer, neuron) for layer, neuron in np.argwhere(masks[row]).tolist())
    return counts


def most_frequent(counts: dict[tuple[int, ...], int], top: str, total: int) -> set[tuple[int, ...]]:
    """Equation 7 or 9: the ⌈ε · N⌉ most frequent neurons and all ties with the last."""
    taken: set[tuple[int, ...]] = set()
    for level in sorted(set(counts.values()), reverse=True):
        if len(taken) >= Fraction(top) * total:
            break
        taken |= {neuron for neuron, count in counts.items() if count == level}
    return taken


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 8),
    draw_seed=st.integers(0, 99),
    chunk=st.integers(1, 40),
    block_bytes=st.integers(1, 400),
    population=st.sampled_from(["neuron", "expert_neuron", "shared_expert_neuron"]),
    top=st.sampled_from(["0.05", "0.3"]),
    seed=st.integers(0, 99),
    failed=st.sets(st.sampled_from([0, 3, 7])),
)
def test_measures_are_those_of_the_drawn_tokens(  # type: ignore[no-untyped-def]
    make_moe, m, draw_seed, chunk, block_bytes, population: PopulationName, top: str, seed, failed
) -> None:
    """Equations 6 to 14 over the drawn tokens equal sets and loops, for any chunks, blocks and failures."""
    case = make_moe(chunk_tokens=chunk, seed=seed, failed=tuple(failed), lengths=(2, 14), per_category=5)
    draw = TokenDraw(tokens=m, seed=draw_seed)
    long_enough = [i for i in case.complete if case.rows(i).stop - case.rows(i).start >= m]
    if len(long_enough) < 2:
        with pytest.raises(IncompleteArchiveError, match=f"at least {m} prompt tokens"):
            find_ises(case.archive, draw=draw, least=2)
        return
    options: Any = {"draw": draw, "block_bytes": block_bytes}
    neurons = find_isns(case.archive, top=float(top), population=population, **options)
    experts = find_ises(case.archive, **options)
    total, sets, shares = choose_population(case.archive, population).total, [], []
    assert neurons.instruction.tolist() == experts.instruction.tolist() == long_enough
    for k, index in enumerate(long_enough):
        rows = drawn_rows(case, index, m, draw_seed)
        sets.append(most_frequent(true_counts(case, rows, population), top, total))
        assert {tuple(where) for where in np.argwhere(neurons.mask(k)).tolist()} == sets[-1]
        shares.append((case.truth.expert[rows][..., None] == np.arange(6)).any(axis=2).mean(axis=0))
        np.testing.assert_allclose(experts.frequencies[k], shares[-1], rtol=0, atol=1e-12)
    assert set(neurons.tokens.tolist()) == set(experts.tokens.tolist()) == {m}
    assert neurons.token_facts == experts.token_facts
    assert neurons.token_facts.too_short == len(case.complete) - len(long_enough)
    categories = [case.archive.instructions.category[i] for i in long_enough]
    _check_means(categories, sets, shares, neurons.pairs.means(), experts.pairs.means())


def _check_means(categories, sets, shares, similarity, correlation) -> None:  # type: ignore[no-untyped-def]
    labels = list(dict.fromkeys(categories))
    for a, b in np.ndindex(len(labels), len(labels)):
        pairs = [
            (i, j)
            for i in range(len(sets))
            for j in range(len(sets))
            if (categories[i], categories[j]) == (labels[a], labels[b])
        ]
        jaccard = [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs if sets[i] | sets[j]]
        assert abs(similarity[0][a, b] - np.mean(jaccard)) < 1e-12 if jaccard else np.isnan(similarity[0][a, b])
        every = [np.corrcoef(shares[i].ravel(), shares[j].ravel())[0, 1] for i, j in pairs]
        assert abs(correlation[0][a, b] - np.mean(every)) < 1e-12
        r, found = [value for value, (i, j) in zip(every, pairs, strict=True) if i != j], correlation[1][a, b]
        assert abs(found - np.mean(r)) < 1e-12 if r else np.isnan(found)


def test_drawing_all_tokens_gives_the_plain_measures(make_case, make_moe) -> None:  # type: ignore[no-untyped-def]
    """If m = T for every instruction, sets, sizes and frequencies equal those without a draw exactly."""
    archive = make_case((9, 9, 9, 9), ("a", "a", "b", "b")).archive
    plain = find_isns(archive)
    matched = find_isns(archive, draw=TokenDraw())
    assert matched.token_facts.drawn == 9
    np.testing.assert_array_equal(matched.sets.rows(0, 4), plain.sets.rows(0, 4))
    np.testing.assert_array_equal(matched.minimum_count, plain.minimum_count)
    moe = make_moe(lengths=(11, 11)).archive
    for population in ("neuron", "expert_neuron", "shared_expert_neuron"):
        pair = [find_isns(moe, population=population, draw=draw) for draw in (None, TokenDraw(11, 5))]
        np.testing.assert_array_equal(pair[0].sets.rows(0, 10), pair[1].sets.rows(0, 10))
    np.testing.assert_array_equal(find_ises(moe, draw=TokenDraw(11)).counts, find_ises(moe).counts)


def test_the_draw_does_not_depend_on_cores(make_moe, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """One core and seven give the same sets and counts."""
    archive = make_moe(lengths=(8, 30)).archive
    found = []
    for cores in (1, 7):
        monkeypatch.setattr(kernels, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(kernels, "MIN_SPLIT_BYTES", 1)
        neurons = find_isns(archive, population="expert_neuron", draw=TokenDraw(seed=2))
        found.append(neurons.sets.rows(0, len(neurons)).copy())
    np.testing.assert_array_equal(*found)


def test_default_draw_is_the_shortest_length_of_at_least_eight(make_case) -> None:  # type: ignore[no-untyped-def]
    """m is T of the shortest instruction with at least eight tokens; shorter ones are left out and counted."""
    archive = make_case((5, 12, 9, 7, 30), ("a", "a", "b", "b", "b")).archive
    matched = find_isns(archive, draw=TokenDraw())
    assert (matched.ids, matched.tokens.tolist()) == (["i1", "i2", "i4"], [9, 9, 9])
    assert (matched.token_facts.drawn, matched.token_facts.too_short) == (9, 2)
    exact = find_isns(make_case((5, 12, 8), ("a", "a", "b")).archive, draw=TokenDraw())
    assert exact.token_facts.drawn == 8


def test_only_counted_tokens_are_drawn(make_case, damage) -> None:  # type: ignore[no-untyped-def]
    """Excluded special tokens are never drawn and do not count toward the length."""
    case = make_case((9, 10, 12), ("a", "a", "b"))
    archive = damage(case.archive, "token/id", slice(0, 31), np.r_[0, 0, np.full(7, 7), 0, np.full(21, 7)])
    left_out: Any = {"special_tokens": "leave_out", "special_token_ids": [0]}
    matched = find_isns(archive, draw=TokenDraw(), **left_out)
    assert (matched.ids, matched.token_facts.drawn, matched.token_facts.special_rows) == (["i1", "i2"], 9, 3)
    plain = find_isns(archive, **left_out)
    assert plain.tokens.tolist() == [7, 9, 12]
    np.testing.assert_array_equal(matched.mask(0), plain.mask(1))  # all of its nine ordinary tokens


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (TokenDraw(tokens=11), "at least 11 prompt tokens; .* has 1 .* 7 have fewer. Draw fewer tokens"),
        (TokenDraw(tokens=500), "at least 500 prompt tokens; .* has 0"),
    ],
)
def test_more_tokens_than_instructions_have_are_refused(typical, draw: TokenDraw, reason: str) -> None:  # type: ignore[no-untyped-def]
    """If fewer than two instructions are long enough, the error gives the number and the remedy."""
    with pytest.raises(IncompleteArchiveError, match=reason):
        find_isns(typical.archive, draw=draw, least=2)


def test_impossible_draws_are_refused(make_case, make_moe) -> None:  # type: ignore[no-untyped-def]
    """Draws of 0 tokens, default draws from short instructions, and draws from counts raise errors."""
    with pytest.raises(
        InvalidInputError, match=r"seed must be at least 0; it is -1\n.*tokens must be at least 1; it is 0"
    ):
        TokenDraw(tokens=0, seed=-1)
    short = make_case((3, 7, 4), ("a", "a", "b")).archive
    with pytest.raises(IncompleteArchiveError, match=r"at least 8 tokens; the longest of .* has 7\. Pass equal"):
        find_isns(short, draw=TokenDraw())
    counts = make_moe(granularity="count").archive
    for measure in (find_isns, find_ises):
        with pytest.raises(UnsupportedArchiveError, match=r"per instruction\. .* extract again"):
            measure(counts, draw=TokenDraw(tokens=2))
