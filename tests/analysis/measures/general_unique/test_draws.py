"""Intervals and null of general and unique members, checked with draws in loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from sparcom_analysis.measures.general_unique.draws import count_members
from sparcom_analysis.measures.general_unique.members import find_members, least_that_counts
from sparcom_analysis.options import Options

CODES = [0, 0, 1, 1, 1, 2, 2, 0, 0]


def direct(masks: NDArray[np.bool_], codes: NDArray[np.intp], options: Options) -> dict[str, NDArray[np.float64]]:
    """Count every draw neuron by neuron: the reference for `count_members`."""
    rows = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    needed = [-(-len(some) // 2) if options.min_share == 0.5 else len(some) for some in rows]

    def resampled() -> Iterator[list[NDArray[np.intp]]]:
        rng = np.random.Generator(np.random.PCG64(options.seed))
        for _ in range(options.n_resamples):
            yield [some[rng.integers(0, len(some), len(some))] for some in rows]

    def permuted() -> Iterator[list[NDArray[np.intp]]]:
        rng = np.random.Generator(np.random.PCG64(options.seed))
        for _ in range(options.n_permutations):
            order = rng.permutation(len(codes)).tolist()
            yield [np.array([order.pop(0) for _ in some]) for some in rows]

    def count(chosen: list[NDArray[np.intp]]) -> NDArray[np.float64]:
        own = [masks[some].sum(axis=0) >= least for some, least in zip(chosen, needed, strict=True)]
        times = np.sum(own, axis=0)
        kinds = [*own, *(one & (times == 1) for one in own), times == len(own), (times > 1) & (times < len(own))]
        layers = np.array([one.sum(axis=(1, 2)) for one in kinds], dtype=float)
        return np.concatenate([layers, layers.sum(axis=1, keepdims=True)], axis=1)

    c = len(rows)

    def fractions(value: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.where(value[:c, -1] > 0, value[:c, -1], np.nan)
        return np.array([value[2 * c, -1] / own, value[c : 2 * c, -1] / own])

    value = count(rows)
    found = {"value": value, "fraction_value": fractions(value)}
    tail = (1 - options.confidence_level) / 2
    for name, of, most in (("", lambda x: x, np.inf), ("fraction_", fractions, 1)):
        drawn = np.array([of(count(chosen)) for chosen in resampled()])
        away, middle = drawn - drawn.mean(axis=0), of(value)
        found[f"{name}ci_low"] = np.maximum(middle + np.minimum(np.quantile(away, tail, axis=0), 0), 0)
        found[f"{name}ci_high"] = np.minimum(middle + np.maximum(np.quantile(away, 1 - tail, axis=0), 0), most)
    null = np.array([count(chosen) for chosen in permuted()])
    found["null_mean"] = null.mean(axis=0)
    unique = null[:, c : 2 * c, -1]
    found["pvalue"] = (1 + (unique >= value[c : 2 * c, -1]).sum(axis=0)) / (1 + options.n_permutations)
    order = np.argsort(found["pvalue"], kind="stable")
    found["pvalue_adjusted"] = np.zeros(c)
    for rank, code in enumerate(order):
        earlier = found["pvalue_adjusted"][order[:rank]]
        found["pvalue_adjusted"][code] = max([min((c - rank) * found["pvalue"][code], 1), *earlier])
    return found


def assert_direct(membership, masks: NDArray[np.bool_], codes, options: Options, in_file: bool = False) -> None:  # type: ignore[no-untyped-def]
    """Check every number to 1e-12."""
    held = membership(masks, codes, 0 if in_file else None)
    found = count_members(held, find_members(held, options.min_share), options)
    plain = direct(masks, np.array(codes), options)
    assert set(found) == set(plain)
    for name, values in plain.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=15)
@given(
    codes=st.permutations(CODES),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 19)),
    rate=st.sampled_from([0.05, 0.5, 0.9]),
    share=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 99),
    in_file=st.booleans(),
)
def test_draws_equal_loops(membership, codes, shape, rate, share, seed, in_file):  # type: ignore[no-untyped-def]
    """For any sets and categories, counts, intervals, null and p equal those of direct draws."""
    masks = np.random.default_rng(seed).random((9, *shape)) < rate
    options = Options(n_resamples=20, n_permutations=20, confidence_level=0.8, seed=seed, min_share=share)
    assert_direct(membership, masks, codes, options, in_file)


def test_skipping_impossible_members_changes_nothing(membership) -> None:  # type: ignore[no-untyped-def]
    """With small and large categories, and most neurons in few instructions, no neuron that a draw counts is
    skipped.
    """
    rng = np.random.default_rng(4)
    codes = np.repeat([0, 1, 2], [150, 10, 150])
    rates = rng.choice([0.02, 0.1, 0.4, 0.5, 0.6], size=(3, 2, 1, 60))
    masks = rng.random((310, 2, 1, 60)) < rates[codes]
    held = membership(masks, codes)
    assert 0 < find_members(held, 0.5).possible.mean() < 1
    assert_direct(membership, masks, codes, Options(n_resamples=50, n_permutations=60))


@settings(deadline=None, max_examples=100)
@given(drawn=st.integers(1, 300), others=st.integers(0, 300), data=st.data())
def test_skipped_ids_have_a_negligible_probability(drawn: int, others: int, data: st.DataObject) -> None:
    """One instruction below the bound, a draw makes a member with probability below 1e-12 (SciPy), with and without
    replacement. Ids in enough instructions are always kept.
    """
    total, needed = drawn + others, data.draw(st.integers(1, drawn))
    least = least_that_counts(total, drawn, needed)
    assert 1 <= least <= max(1, -(-needed * total // drawn))
    assert binom.sf(needed - 1, drawn, (least - 1) / total) < 1e-12
    assert hypergeom.sf(needed - 1, total, least - 1, drawn) < 1e-12


def test_cores_and_runs_change_nothing(membership, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The same seed gives the same bytes on any number of cores; another seed gives others."""
    held = membership(np.random.default_rng(0).random((30, 2, 1, 60)) < 0.5, np.arange(30) % 3)
    members, options = find_members(held, 0.5), Options(n_resamples=9, n_permutations=9)
    plain = count_members(held, members, options)
    for cores in (1, 2, 16):
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        again = count_members(held, members, options)
        assert all(again[name].tobytes() == plain[name].tobytes() for name in plain)
    other = count_members(held, members, Options(n_resamples=9, n_permutations=9, seed=1))
    assert other["ci_low"].tolist() != plain["ci_low"].tolist()
    assert other["null_mean"].tolist() != plain["null_mean"].tolist()


def test_a_category_of_one_instruction_has_no_interval(membership) -> None:  # type: ignore[no-untyped-def]
    """Neither have general, common and unique members that depend on it; members of other categories have one."""
    held = membership(np.random.default_rng(0).random((7, 2, 1, 30)) < 0.5, [0, 0, 0, 1, 2, 2, 2])
    found = count_members(held, find_members(held, 0.5), Options(n_resamples=20, n_permutations=0))
    for end in ("low", "high"):
        assert np.isnan(found[f"ci_{end}"]).any(axis=1).tolist() == [False, True, False, *[True] * 5]
        assert np.isnan(found[f"fraction_ci_{end}"]).all()
    assert "null_mean" not in found


def test_unique_members_are_tested_against_the_null(membership) -> None:  # type: ignore[no-untyped-def]
    """Twenty neurons of one category alone are above the null; random neurons of the others are not."""
    rng = np.random.default_rng(0)
    masks = rng.random((60, 2, 1, 50)) < 0.3
    masks[0::3, 0, 0, :20] |= rng.random((20, 20)) < 0.9
    held = membership(masks, np.arange(60) % 3)
    found = count_members(held, find_members(held, 0.5), Options(n_resamples=0, n_permutations=200))
    assert found["pvalue_adjusted"][0] == pytest.approx(3 / 201)
    assert (found["pvalue_adjusted"][1:] > 0.05).all()
    assert "ci_low" not in found


def test_draws_and_permutations_share_one_progress(membership) -> None:  # type: ignore[no-untyped-def]
    """Progress rises to their sum. With one category no label is permuted, and no member is unique."""
    masks, said = np.random.default_rng(0).random((4, 1, 1, 9)) < 0.5, []
    options = Options(n_resamples=4, n_permutations=3)
    for codes, total in (([0, 0, 1, 1], 7), ([0] * 4, 4)):
        held = membership(masks, codes)
        said.clear()
        found = count_members(held, find_members(held, 0.5), options, lambda *both: said.append(both))
        assert said == [(k, total) for k in range(1, total + 1)]
    assert np.isnan(found["value"]).any(axis=1).tolist() == [False, True, True, True]
    assert np.isnan(found["ci_low"]).any(axis=1).tolist() == [False, True, True, True]
    assert "pvalue" not in found
