"""What tuning shifts, against means over the instructions of both archives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparcom_analysis import analyze, category_experts, expert_shift, instruction_experts, top_experts
from sparcom_analysis.tuned.shift import check_twins
from sparcom_data.errors import IncompleteArchiveError, UnsupportedArchiveError


def test_shift_is_over_the_instructions_of_both(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Means of both models are over the matched instructions alone; the others are counted."""
    base, tuned = make_moe(failed=(1,), experts=8), make_moe(failed=(5, 8), experts=8, seed=1)
    left, right = instruction_experts(base.archive), instruction_experts(tuned.archive)
    shift = expert_shift(left, right)
    both = [f"i{k:03d}" for k in range(10) if k not in (1, 5, 8)]
    assert (shift.matched, shift.only_base, shift.only_tuned) == (7, 2, 1)
    place = [[item.ids.index(name) for name in both] for item in (left, right)]
    assert shift.different_rows == int((left.tokens[place[0]] != right.tokens[place[1]]).sum()) > 0
    means = [
        np.array([np.mean([item.frequencies(k) for k in where if item.ids[k] < "i005"], axis=0) for _ in "a"])[0]
        for item, where in zip((left, right), place, strict=True)
    ]
    np.testing.assert_allclose(shift.shift[0], means[1] - means[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(shift.shift.sum(axis=-1), 0, atol=1e-12)
    for c, j in np.ndindex(2, 2):
        after = set(shift.tuned_top.expert[c, j].tolist())
        assert shift.kept[c, j].tolist() == [expert in after for expert in shift.base_top.expert[c, j].tolist()]
    assert not shift.kept.all()


def test_a_model_against_itself_shifts_nothing(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The same archive twice: no shift, all top experts stay, and the means are those of the archive."""
    experts = instruction_experts(make_moe().archive)
    shift = expert_shift(experts, experts)
    assert not shift.shift.any()
    assert not shift.overall_shift.any()
    assert shift.kept.all()
    assert shift.overall_kept.all()
    means = category_experts(experts)
    np.testing.assert_array_equal(shift.base.mean, means.mean)
    np.testing.assert_array_equal(shift.base_top.expert, top_experts(means).expert)


def test_order_and_categories_of_the_tuned_archive_play_no_part(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Instructions are matched by id; their categories are the base archive's."""
    left = instruction_experts(make_moe().archive)
    right = instruction_experts(make_moe(seed=3).archive)
    turned = replace(
        right,
        ids=list(right.ids)[::-1],
        categories=["other"] * 10,
        tokens=right.tokens[::-1],
        counts=right.counts[::-1],
    )
    expected, found = expert_shift(left, right), expert_shift(left, turned)
    assert list(found.tuned.categories) == ["CLS", "CODE"]
    np.testing.assert_array_equal(found.shift, expected.shift)


def test_other_models_are_refused(make_moe, typical, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Another number of experts or choices, other layers, a dense model: both sides are named, nothing is written."""
    base = make_moe().archive
    for options in ({"experts": 7}, {"choices": 1}, {"dense_layers": 2}):
        with pytest.raises(
            UnsupportedArchiveError, match=r"the same experts in the same layers; .* has 6 experts, 2 a"
        ):
            check_twins(base, make_moe(**options).archive)
    dense = typical.archive
    for pair, said in (
        ((base, dense), "expert frequencies need"),
        ((dense, base), r"routed experts: none in .*, 6 x 12"),
    ):
        with pytest.raises(UnsupportedArchiveError, match=said):
            analyze(pair[0], tmp_path / "out", tuned=pair[1])
    assert not (tmp_path / "out").exists()


def test_no_instruction_in_both_is_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Where nothing can be matched there is no comparison."""
    left = instruction_experts(make_moe(failed=range(5)).archive)
    right = instruction_experts(make_moe(failed=range(5, 10)).archive)
    with pytest.raises(IncompleteArchiveError, match=r"there is none \(of 5 and 5\)"):
        expert_shift(left, right)
