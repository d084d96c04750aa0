"""Special tokens are excluded from T and every count; checked with loops over the tokens of random archives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import (
    activation_counts,
    activation_frequencies,
    expert_frequencies,
    find_ises,
    find_isns,
)
from sparcom_analysis.archive import blocks
from sparcom_analysis.archive.counted_rows import counted_rows
from sparcom_analysis.archive.populations import PopulationName, choose_population
from sparcom_analysis.archive.rows import row_spans
from sparcom_analysis.frequencies import iterate_counts
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError

SPECIAL = list(range(0, 1000, 3))  # random archives have random token ids below 1000
LEFT_OUT = Options(special_tokens="leave_out", special_token_ids=SPECIAL)


def knowing(archive: Archive, ids: Sequence[int]) -> Archive:
    """Return the archive with special token ids in its attributes."""
    for file in (Path(archive.path) / "zarr.json",):
        fields = json.loads(file.read_text())
        fields["attributes"]["sparcom"]["prompts"] = {"special_token_ids": list(ids)}
        file.write_text(json.dumps(fields))
    return open_archive(archive.path)


def ordinary(case: Any, index: int, special: Sequence[int] = SPECIAL) -> NDArray[np.bool_]:
    """Return the tokens of an instruction that are not special, bool (T,)."""
    rows = case.rows(index)
    ids = case.archive.read_tokens(rows.start, rows.stop)[0]
    return np.array([int(token) not in special for token in ids])


def true_counts(case: Any, index: int, population: str) -> NDArray[np.int64]:
    """Count ordinary tokens in a loop: c, (layer, neuron), or (layer, expert, neuron) for experts."""
    truth, kept = case.truth, ordinary(case, index)
    tokens = [row for row, keep in zip(range(case.rows(index).start, case.rows(index).stop), kept, strict=True) if keep]
    if population != "expert_neuron":
        masks = truth.masks if population == "neuron" else truth.shared_active
        return np.array(sum(masks[row].astype(int) for row in tokens))
    moe = case.archive.moe
    counts = np.zeros((len(moe.layer_ids), moe.experts, moe.neurons), dtype=int)
    for row in tokens:
        for layer, choice in np.ndindex(truth.expert.shape[1:]):
            counts[layer, truth.expert[row, layer, choice]] += truth.expert_active[row, layer, choice]
    return counts


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(1, 40),
    block_bytes=st.integers(1, 400),
    population=st.sampled_from(["neuron", "expert_neuron", "shared_expert_neuron"]),
    seed=st.integers(0, 99),
    failed=st.sets(st.sampled_from([0, 3, 4, 7])),
)
def test_counts_are_those_of_ordinary_tokens(  # type: ignore[no-untyped-def]
    make_moe, chunk: int, block_bytes: int, population: PopulationName, seed: int, failed: set[int]
) -> None:
    """T, c and f are sums over ordinary tokens, for any chunks, blocks and failures."""
    case = make_moe(chunk_tokens=chunk, seed=seed, failed=tuple(failed))
    archive, special_rows = case.archive, 0
    kept = {index: int(ordinary(case, index).sum()) for index in case.complete}
    special_rows = sum(len(ordinary(case, index)) for index in case.complete) - sum(kept.values())
    spans = counted_rows(archive, LEFT_OUT, least=0)
    assert dict(zip(spans.instruction.tolist(), spans.tokens.tolist(), strict=True)) == {
        index: tokens for index, tokens in kept.items() if tokens
    }
    assert spans.token_facts.special_rows == special_rows
    assert spans.without_rows == sum(not tokens for tokens in kept.values())
    chosen = choose_population(archive, population)
    for k, counts in iterate_counts(archive, spans, chosen, block_bytes=block_bytes):
        expected = true_counts(case, int(spans.instruction[k]), population)
        found = counts.reshape(chosen.layers, chosen.experts, -1)[:, :, : chosen.neurons]
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    experts = find_ises(
        archive, special_tokens="leave_out", special_token_ids=SPECIAL, block_bytes=block_bytes, least=1
    )
    for k, index in enumerate(experts.instruction.tolist()):
        chosen = case.truth.expert[case.rows(index)][ordinary(case, index)]
        expected = (chosen[..., None] == np.arange(experts.experts)).any(axis=2).mean(axis=0)
        np.testing.assert_allclose(experts.frequencies[k], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [1, 4, 11])
def test_token_ids_may_be_read_in_pieces(make_moe, monkeypatch, step: int) -> None:  # type: ignore[no-untyped-def]
    """Reads that split instructions find the same special rows."""
    case = make_moe(failed=(2, 7))
    last = max(case.rows(index).stop for index in case.complete)
    whole = counted_rows(case.archive, LEFT_OUT)
    pieces = [(start, min(start + step, last)) for start in range(0, last, step)]
    monkeypatch.setattr(blocks, "plan_reads", lambda *_: pieces)
    cut = counted_rows(case.archive, LEFT_OUT)
    np.testing.assert_array_equal(cut.kept, whole.kept)
    assert cut.token_facts == whole.token_facts


def test_one_instruction_alone_is_counted_the_same(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Frequencies of one instruction divide by the tokens that are not special."""
    case = make_moe()
    kept, options = ordinary(case, 1), {"special_tokens": "leave_out", "special_token_ids": SPECIAL}
    assert 0 < kept.sum() < len(kept)
    expected = case.truth.masks[case.rows(1)][kept].mean(axis=0)
    np.testing.assert_allclose(
        activation_frequencies(case.archive, 1, population="neuron", **options), expected, atol=1e-12
    )  # type: ignore[arg-type]
    counts = activation_counts(case.archive, 1, population="expert_neuron", **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(counts, true_counts(case, 1, "expert_neuron"))
    shares = expert_frequencies(case.archive, 1, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(shares.sum(axis=1), 2, atol=1e-12)


def test_given_ids_replace_those_of_the_archive(make_moe) -> None:  # type: ignore[no-untyped-def]
    """By default the archive lists the special ids; given ids replace them."""
    archive = knowing(make_moe().archive, SPECIAL)
    known = find_isns(archive, special_tokens="leave_out")
    given_all = find_isns(archive, special_tokens="leave_out", special_token_ids=SPECIAL[::-1])
    assert known.token_facts == given_all.token_facts
    assert known.token_facts.special_ids == tuple(SPECIAL)
    assert known.tokens.tolist() == given_all.tokens.tolist()
    one = find_isns(archive, special_tokens="leave_out", special_token_ids=[3])
    assert one.token_facts.special_rows < known.token_facts.special_rows
    assert one.token_facts.special_rows == find_isns(archive).tokens.sum() - one.tokens.sum()


def test_a_tokenizer_without_special_tokens_leaves_none_out(make_moe) -> None:  # type: ignore[no-untyped-def]
    """An archive with an empty list of special ids gives exactly the counts of all tokens."""
    archive = knowing(make_moe().archive, [])
    plain, left = (find_isns(archive, special_tokens=choice) for choice in ("count", "leave_out"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(left.sets.rows(0, len(left)), plain.sets.rows(0, len(plain)))
    assert (left.token_facts.special_tokens, left.token_facts.special_rows) == ("leave_out", 0)
    assert (plain.token_facts.special_tokens, plain.token_facts.special_rows) == ("count", 0)


def test_an_instruction_of_special_tokens_alone_is_without_rows(make_case, damage) -> None:  # type: ignore[no-untyped-def]
    """An instruction without other tokens is not used, and is counted among those without rows."""
    case = make_case((3, 4, 5), ("a", "a", "b"))
    archive = damage(case.archive, "token/id", slice(3, 12), 7)  # the first keeps id 0
    found = find_isns(archive, special_tokens="leave_out", special_token_ids=[0])
    assert (found.ids, found.without_rows, found.token_facts.special_rows) == (["i1", "i2"], 1, 3)
    assert found.tokens.tolist() == [4, 5]
    assert len(row_spans(archive, "prompt")) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"special_tokens": "leave_out"},
            "does not list them .* Pass --special-token-id .*, count special tokens, or extract again",
        ),
        (
            {"special_tokens": "count", "special_token_ids": [1]},
            "names tokens to omit; add special_tokens='leave_out'",
        ),
        ({"special_tokens": "leave_out", "special_token_ids": []}, r"one or more token ids, 0 to 2147483647; .* \[\]"),
        ({"special_tokens": "leave_out", "special_token_ids": [-1]}, r"they are \[-1\]"),
        ({"special_tokens": "keep"}, "must be count or leave_out; it is 'keep'"),
    ],
)
def test_invalid_special_ids_are_refused(typical, options: dict[str, Any], reason: str) -> None:  # type: ignore[no-untyped-def]
    """Unknown ids, ids without the option and invalid ids raise errors with remedies."""
    with pytest.raises((InvalidInputError, UnsupportedArchiveError), match=reason):
        find_isns(typical.archive, **options)


def test_counts_cannot_be_split(make_moe) -> None:  # type: ignore[no-untyped-def]
    """An archive of counts cannot leave out special tokens, with listed or given ids."""
    archive = make_moe(granularity="count").archive
    for measure in (find_isns, find_ises):
        with pytest.raises(UnsupportedArchiveError, match=r"per instruction\. Count special tokens too, or extract"):
            measure(archive, special_tokens="leave_out", special_token_ids=[1])
        assert len(measure(archive)) == 10


def test_a_row_without_a_token_id_is_damage(typical, damage) -> None:  # type: ignore[no-untyped-def]
    """A row without a token id in a complete instruction raises an error."""
    archive = damage(typical.archive, "token/id", 6, -1)
    with pytest.raises(DamagedArchiveError, match=r"row 6 of instruction 'i1' .* holds -1"):
        find_isns(archive, special_tokens="leave_out", special_token_ids=[1])
