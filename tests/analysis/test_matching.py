"""Matching of instructions between two archives, and archives that cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparcom_analysis import find_ises, find_isns
from sparcom_analysis.archive.rows import TokenFacts
from sparcom_analysis.matching import check_models, match_instructions
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError


def test_instructions_are_matched_by_id(make_moe: Any) -> None:
    """Matches give indices, the base's categories and unmatched instructions of either side, in any order, for neurons
    and experts.
    """
    base, tuned = make_moe(failed=(1,)).archive, make_moe(failed=(5, 8), seed=1).archive
    for measure in (find_isns, find_ises):
        left, right = measure(base), measure(tuned)
        turned = np.arange(len(right))[::-1]
        right = right.take(turned)
        matched = match_instructions(left, right)
        assert matched.ids == [f"i{k:03d}" for k in range(10) if k not in (1, 5, 8)]
        assert [left.ids[k] for k in matched.base] == [right.ids[k] for k in matched.tuned] == matched.ids
        assert matched.categories == ["CLS"] * 4 + ["CODE"] * 3
        assert (len(matched), matched.only_base, matched.only_tuned) == (7, 2, 1)
        rows = sum(left.tokens[i] != right.tokens[j] for i, j in zip(matched.base, matched.tuned, strict=True))
        assert matched.different_lengths == rows > 0
        assert matched.different_tokens == 7


@pytest.mark.parametrize("chunk", [2, 32])
def test_different_tokens_are_found(make_moe: Any, damage: Any, monkeypatch: Any, chunk: int) -> None:
    """One differing token id in one instruction is counted, wherever chunks end and whatever failed beside it."""
    monkeypatch.setattr("sparcom_data.create.TOKEN_CHUNK", chunk)
    base, tuned = (make_moe(failed=failed) for failed in ((1,), (4, 5)))
    assert base.archive.array("token/id").chunks == (chunk,)
    for case in (base, tuned):
        for k in case.complete:
            rows = case.rows(k)
            damage(case.archive, "token/id", rows, np.arange(rows.start, rows.stop) * 7 + k - rows.start * 7)
    for other in (6, 9):
        row = tuned.rows(other).stop - 1
        damage(tuned.archive, "token/id", slice(row, row + 1), -5)
    left, right = find_ises(base.archive), find_ises(tuned.archive)
    matched = match_instructions(left, right)
    assert matched.same_tokens is not None
    assert matched.same_tokens.tolist() == [name not in ("i006", "i009") for name in matched.ids]
    assert (len(matched), matched.different_tokens, matched.different_lengths) == (7, 2, 0)


def test_tokens_of_counts_are_unknown(make_moe: Any) -> None:
    """An archive of counts has no token ids, so their equality is unknown."""
    archives = (make_moe().archive, make_moe(granularity="count").archive)
    matched = match_instructions(*(find_isns(archive) for archive in archives))
    assert (len(matched), matched.different_lengths, matched.different_tokens) == (10, 0, None)


def test_other_rules_are_refused(make_moe: Any) -> None:
    """Another population, shape, positions or rule of selection: the error has both values."""
    archive = make_moe().archive
    base = find_isns(archive)
    others = {
        r"population: routed experts, .* in base, dense layers, .* in tuned": find_isns(archive, population="neuron"),
        r"selection: top 0.05 in base, top 0.1 in tuned": find_isns(archive, top=0.1),
        r"selection: top 0.05 in base, p ≥ 0.05": find_isns(archive, min_frequency=0.05),
        r"positions: prompt in base, all in tuned": replace(base, positions="all"),
        r"6 x 12 neurons .* in base, routed experts, 6 x 13 neurons": find_isns(make_moe(expert_neurons=13).archive),
        r"in layers \[1, 2\] in base, .* in layers \[1, 2, 3\] in tuned": find_isns(make_moe(moe_layers=3).archive),
    }
    for said, tuned in others.items():
        with pytest.raises(UnsupportedArchiveError, match=said):
            match_instructions(base, tuned)
    experts = find_ises(archive)
    with pytest.raises(UnsupportedArchiveError, match=r"experts: 6 experts, 2 per token, .* 7 experts, 2 per token"):
        match_instructions(experts, find_ises(make_moe(experts=7).archive))
    with pytest.raises(UnsupportedArchiveError, match="positions: prompt in base, response in tuned"):
        match_instructions(experts, replace(experts, positions="response"))
    for measured in (base, experts):
        for facts, said in (
            (
                TokenFacts(special_tokens="leave_out"),
                "tokens: special tokens counted in base, special tokens left out in",
            ),
            (TokenFacts(drawn=8, seed=3), "tokens: .* in base, special tokens counted, 8 drawn with seed 3 in tuned"),
        ):
            with pytest.raises(UnsupportedArchiveError, match=said):
                match_instructions(measured, replace(measured, token_facts=facts))
        same = replace(measured, token_facts=TokenFacts(special_rows=2, too_short=1))
        assert len(match_instructions(measured, same)) == 10


def test_different_models_are_refused_before_reading(make_moe: Any, typical: Any) -> None:
    """Two models that differ in any population are refused by their attributes, with both paths; others are not."""
    base = make_moe().archive
    check_models(base, make_moe(seed=5).archive)
    check_models(base, make_moe(granularity="count").archive)
    check_models(typical.archive, typical.archive)
    for options in ({"experts": 7}, {"choices": 1}, {"dense_layers": 2}, {"shared_neurons": 8}, {"neurons": 24}):
        other = make_moe(**options).archive
        with pytest.raises(UnsupportedArchiveError, match=f"in {base.path}, .* in {other.path}"):
            check_models(base, other)
    other = make_moe().archive
    capture = other.attributes.capture.model_copy(update={"predicate": "activation > 0"})
    other.attributes = other.attributes.model_copy(update={"capture": capture})
    with pytest.raises(UnsupportedArchiveError, match=r"predicate: gate > 0 in .*, activation > 0 in"):
        check_models(base, other)
    with pytest.raises(UnsupportedArchiveError, match=r"router: 6 experts, 2 per token, .*, none in"):
        check_models(base, typical.archive)


def test_impossible_matches_are_refused(make_moe: Any) -> None:
    """No common instruction, or an id of two instructions, is an error, never a guess."""
    left = find_ises(make_moe(failed=range(5)).archive)
    right = find_ises(make_moe(failed=range(5, 10)).archive)
    with pytest.raises(IncompleteArchiveError, match=r"there is none \(of 5 and 5\)"):
        match_instructions(left, right)
    with pytest.raises(DamagedArchiveError, match="'i007' occurs 2 times in tuned"):
        match_instructions(left, replace(left, ids=["i005", "i007", "i007", "i008", "i009"]))


def test_the_same_tokens_with_other_origins_are_refused(make_moe: Any, damage: Any) -> None:
    """A comparison of content would cover different tokens of the same prompt; the error names the first id."""
    base, tuned = (make_moe(origins=True).archive for _ in range(2))
    row = int(tuned.instructions.token_start[4])
    tuned = damage(tuned, "token/origin", slice(row, row + 1), 1)
    sides = [find_isns(one, counted_tokens="content") for one in (base, tuned)]
    with pytest.raises(UnsupportedArchiveError, match=r"of 1 instructions differ, the first is 'i004'.*--tokens all"):
        match_instructions(*sides)
    match_instructions(find_isns(base), find_isns(tuned))
    with pytest.raises(
        UnsupportedArchiveError, match=r"tokens: content only, .* in base, special tokens counted in tun"
    ):
        match_instructions(sides[0], find_isns(tuned))
