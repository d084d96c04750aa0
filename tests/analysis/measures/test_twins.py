"""Which instructions of two archives belong together, and which archives may not be compared at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.archive.rows import TokenFacts
from sparcom_analysis.matching import check_models, match_twins
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError


def test_instructions_are_matched_by_id(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Places, categories of the base and those of one side alone, for neurons and for experts, whatever the order."""
    base, tuned = make_moe(failed=(1,)).archive, make_moe(failed=(5, 8), seed=1).archive
    for measure in (instruction_specific_neurons, instruction_experts):
        left, right = measure(base), measure(tuned)
        turned = np.arange(len(right))[::-1]
        right = replace(right, ids=[right.ids[k] for k in turned], tokens=right.tokens[turned])
        twins = match_twins(left, right)
        assert twins.ids == [f"i{k:03d}" for k in range(10) if k not in (1, 5, 8)]
        assert [left.ids[k] for k in twins.base] == [right.ids[k] for k in twins.tuned] == twins.ids
        assert twins.categories == ["CLS"] * 4 + ["CODE"] * 3
        assert (len(twins), twins.only_base, twins.only_tuned) == (7, 2, 1)
        rows = sum(left.tokens[i] != right.tokens[j] for i, j in zip(twins.base, twins.tuned, strict=True))
        assert twins.different_rows == rows > 0
        assert twins.same_tokens is None
        assert twins.different_tokens is None


@pytest.mark.parametrize("chunk", [2, 8, 32])
def test_twins_that_read_other_tokens_are_found(make_moe, damage, monkeypatch, chunk: int) -> None:  # type: ignore[no-untyped-def]
    """One other token id in one instruction is told, wherever chunks end and whatever failed beside it."""
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
    archives = (base.archive, tuned.archive)
    left, right = (instruction_experts(archive) for archive in archives)
    twins = match_twins(left, right, archives)
    assert twins.same_tokens is not None
    assert twins.same_tokens.tolist() == [name not in ("i006", "i009") for name in twins.ids]
    assert (len(twins), twins.different_tokens, twins.different_rows) == (7, 2, 0)


def test_of_counts_the_tokens_are_not_known(make_moe) -> None:  # type: ignore[no-untyped-def]
    """An archive of counts holds no token ids: whether they are the same is said to be unknown, not true."""
    archives = (make_moe().archive, make_moe(granularity="count").archive)
    twins = match_twins(*(instruction_specific_neurons(archive) for archive in archives), archives=archives)
    assert (len(twins), twins.different_rows, twins.different_tokens) == (10, 0, None)


def test_other_rules_are_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Another component, shape, kind of rows or rule of selection: both values are said."""
    archive = make_moe().archive
    base = instruction_specific_neurons(archive)
    others = {
        r"component: expert_neuron in base, neuron in tuned": instruction_specific_neurons(archive, component="neuron"),
        r"selection: epsilon 0.05 in base, epsilon 0.1 in tuned": instruction_specific_neurons(archive, epsilon=0.1),
        r"selection: epsilon 0.05 in base, threshold 0.05": instruction_specific_neurons(archive, threshold=0.05),
        r"rows: prompt in base, all in tuned": replace(base, rows="all"),
        r"6 x 12 neurons .* in base, 6 x 13 neurons": instruction_specific_neurons(make_moe(expert_neurons=13).archive),
        r"in layers \[1, 2\] in base, .* in layers \[1, 2, 3\] in tuned": instruction_specific_neurons(
            make_moe(moe_layers=3).archive
        ),
    }
    for said, tuned in others.items():
        with pytest.raises(UnsupportedArchiveError, match=said):
            match_twins(base, tuned)
    experts = instruction_experts(archive)
    with pytest.raises(UnsupportedArchiveError, match=r"experts: 6 experts, 2 a token, .* 7 experts, 2 a token"):
        match_twins(experts, instruction_experts(make_moe(experts=7).archive))
    with pytest.raises(UnsupportedArchiveError, match="rows: prompt in base, response in tuned"):
        match_twins(experts, replace(experts, rows="response"))
    for measured in (base, experts):
        for facts, said in (
            (TokenFacts(special_tokens="leave_out"), "tokens: special ones counted in base, special ones left out in"),
            (TokenFacts(drawn=8, seed=3), "tokens: .* in base, special ones counted, 8 drawn with seed 3 in tuned"),
        ):
            with pytest.raises(UnsupportedArchiveError, match=said):
                match_twins(measured, replace(measured, token_facts=facts))
        same = replace(measured, token_facts=TokenFacts(special_rows=2, too_short=1))
        assert len(match_twins(measured, same)) == 10


def test_archives_are_told_apart_before_they_are_read(make_moe, typical) -> None:  # type: ignore[no-untyped-def]
    """Two models that differ in any component are refused by their attributes, with both paths; twins are not."""
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
    with pytest.raises(UnsupportedArchiveError, match=r"router: 6 experts, 2 a token, .*, none in"):
        check_models(base, typical.archive)


def test_what_cannot_be_matched_is_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """No instruction in both, or an id that stands for two instructions: never a guess."""
    left = instruction_experts(make_moe(failed=range(5)).archive)
    right = instruction_experts(make_moe(failed=range(5, 10)).archive)
    with pytest.raises(IncompleteArchiveError, match=r"there is none \(of 5 and 5\)"):
        match_twins(left, right)
    with pytest.raises(DamagedArchiveError, match="'i007' occurs 2 times in tuned"):
        match_twins(left, replace(left, ids=["i005", "i007", "i007", "i008", "i009"]))
