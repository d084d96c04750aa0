"""Members of categories, checked with Python sets, fractions and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis.archive.categories import category_codes
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.isn import find_isns
from sparcom_analysis.measures.general_unique.general_unique import general_unique
from sparcom_analysis.measures.general_unique.members import KINDS, Members, find_members, membership_of
from sparcom_data.errors import InvalidInputError

Ids = set[tuple[int, ...]]
SHARES = st.sampled_from([0.5, 1.0, 0.01, 0.3, 0.35, 2 / 3, 0.7])


def expected(sets: Sequence[Ids], codes: Sequence[int], share: float) -> list[tuple[int, tuple[int, ...], str]]:
    """Return category, id and kind of every member, by loops over Python sets."""
    own: list[Ids] = []
    for code in range(max(codes) + 1):
        mine = [held for held, other in zip(sets, codes, strict=True) if other == code]
        every: Ids = set().union(*mine)
        own.append({x for x in every if Fraction(sum(x in held for held in mine), len(mine)) >= Fraction(repr(share))})
    times = {x: sum(x in held for held in own) for x in set().union(*own)}
    kinds = {x: "unique" if n == 1 else "general" if n == len(own) else "common" for x, n in times.items()}
    if len(own) == 1:
        kinds = dict.fromkeys(times, "member")
    return [(code, x, kinds[x]) for code, held in enumerate(own) for x in sorted(held)]


def found_in(members: Members) -> list[tuple[int, tuple[int, ...], str]]:
    """Return the same of `Members`."""
    columns = (members.category, members.layer, members.expert, members.neuron, members.kind)
    return [
        (c, (j, e, i), [*KINDS, "member"][kind])
        for c, j, e, i, kind in zip(*(column.tolist() for column in columns), strict=True)
    ]


@settings(deadline=None, max_examples=50)
@given(
    categories=st.lists(st.sampled_from(["CLS", "", "GEN", "QA"]), min_size=1, max_size=40),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 19)),
    rate=st.sampled_from([0.02, 0.4, 0.7, 0.97]),
    share=SHARES,
    seed=st.integers(0, 999),
    in_file=st.booleans(),
)
def test_members_equal_python_sets(membership, categories, shape, rate, share, seed, in_file):  # type: ignore[no-untyped-def]
    """Members and kinds equal those of loops, for any sets, categories and share, in memory or in a file."""
    masks = np.random.default_rng(seed).random((len(categories), *shape)) < rate
    codes = category_codes(categories)
    found = find_members(membership(masks, codes, 0 if in_file else None), share)
    sets = [set(map(tuple, np.argwhere(mask).tolist())) for mask in masks]
    assert found_in(found) == expected(sets, codes.tolist(), share)


@settings(deadline=None, max_examples=40)
@given(
    categories=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=20),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19)),
    largest=st.integers(0, 6),
    share=SHARES,
    top=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_most_used_experts_equal_python_sets(categories, shape, largest, share, top, seed):  # type: ignore[no-untyped-def]
    """A most used expert is activated, and fewer than k experts of its layer are used more."""
    codes = category_codes(list(map(str, categories)))
    counts = np.random.default_rng(seed).integers(0, largest + 1, size=(len(codes), *shape), dtype=np.uint32)
    sets = [
        {
            (j, 0, e)
            for j, row in enumerate(one.tolist())
            for e in range(shape[1])
            if row[e] and sum(other > row[e] for other in row) < top
        }
        for one in counts
    ]
    held = SimpleNamespace(counts=counts, experts=shape[1], layer_ids=range(shape[0]), codes=codes)
    held.most_used = lambda: ExpertCounts.most_used(held, top)  # type: ignore[arg-type]
    found = find_members(membership_of(held, most_used=True), share)  # type: ignore[arg-type]
    assert found_in(found) == expected(sets, codes.tolist(), share)


def ids_of(ds: xr.Dataset) -> list[tuple[int, tuple[int, ...], str]]:
    """Return category, id and kind of every member of a Dataset."""
    labels, held = ds["category"].values.tolist(), [name for name in ("expert", "neuron") if f"member_{name}" in ds]
    ids = zip(*(ds[f"member_{name}"].values.tolist() for name in ("layer", *held)), strict=True)
    columns = (ds["member_category"].values.tolist(), ids, ds["member_kind"].values.tolist())
    return [(labels.index(name), x, kind) for name, x, kind in zip(*columns, strict=True)]


@settings(deadline=None, max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(granularity=st.sampled_from(["token", "count"]), block_bytes=st.integers(1, 400), seed=st.integers(0, 99))
def test_archives_equal_python_sets(make_moe, granularity, block_bytes, seed):  # type: ignore[no-untyped-def]
    """Archives of masks and of counts are right for every population and both kinds of experts, for any block size."""
    archive = make_moe(categories=("b", "a", ""), granularity=granularity, seed=seed, failed=(2,)).archive
    plain = {"top": 0.2, "n_resamples": 0, "n_permutations": 0, "block_bytes": block_bytes}
    for name in ("expert_neuron", "neuron", "shared_expert_neuron"):
        isn = find_isns(archive, population=name, **plain)
        sets = [{(isn.layer_ids[j], *rest) for j, *rest in np.argwhere(isn.mask(k)).tolist()} for k in range(len(isn))]
        assert ids_of(general_unique(isn)) == expected(sets, isn.codes.tolist(), 0.5)
    experts = find_ises(archive, **plain)
    for most_used, chosen in ((False, experts.activated), (True, experts.most_used(5))):
        sets = [{(experts.layer_ids[j], e) for j, e in np.argwhere(one).tolist()} for one in chosen]
        assert ids_of(general_unique(experts, most_used=most_used)) == expected(sets, experts.codes.tolist(), 0.5)


def test_min_share_is_an_exact_decimal(membership) -> None:  # type: ignore[no-untyped-def]
    """0.7 of 10 and 0.07 of 100 instructions require 7; floats would round up to 8."""
    assert math.ceil(0.07 * 100) == 8
    for share, sizes, needed in ((0.07, (100, 1, 15), [7, 1, 2]), (0.5, (1, 2, 3), [1, 1, 2]), (1, (3, 7), [3, 7])):
        codes = np.repeat(np.arange(len(sizes)), sizes)
        held = membership(np.ones((len(codes), 1, 1, 3), dtype=bool), codes)
        assert find_members(held, share).needed.tolist() == needed


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_values_of_min_share_out_of_range_are_refused(typical, share: float) -> None:  # type: ignore[no-untyped-def]
    """Values outside (0, 1] raise an error with the rule and the value."""
    with pytest.raises(InvalidInputError, match="min_share must be above 0 and at most 1; it is"):
        general_unique(find_isns(typical.archive), min_share=share)


def test_blocks_and_cores_change_nothing(membership, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Members are equal for any block size and number of cores, in memory or in a file."""
    masks, codes = np.random.default_rng(5).random((300, 2, 1, 500)) < 0.5, np.arange(300) % 3
    plain = found_in(find_members(membership(masks, codes), 0.5))
    for block in (1, 10_000):
        for cores in (1, 2, 16):
            monkeypatch.setattr("sparcom_analysis.measures.general_unique.members.BATCH_SETS", block)
            monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
            assert found_in(find_members(membership(masks, codes, 0), 0.5)) == plain
    assert {kind for *_, kind in plain} == set(KINDS)


def test_ties_at_the_last_rank_all_belong() -> None:
    """With two ranks, counts 5 3 3 1 0 select three experts; if only two are activated, five ranks select two."""
    counts = np.array([[[5, 3, 3, 1, 0], [0, 0, 4, 0, 1]]], dtype=np.uint32)
    held = SimpleNamespace(counts=counts, experts=5)
    assert ExpertCounts.most_used(held, 2)[0].tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 0, 1]]  # type: ignore[arg-type]
    assert ExpertCounts.most_used(held, 5)[0].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 0, 1]]  # type: ignore[arg-type]
