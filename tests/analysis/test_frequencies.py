"""Equation 6, checked with sums over the written masks."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis import activation_counts, activation_frequencies, find_isns
from sparcom_analysis.archive.populations import choose_population
from sparcom_analysis.archive.rows import choose_positions, row_spans
from sparcom_analysis.frequencies import iterate_counts
from sparcom_data.archive import open_archive
from sparcom_data.errors import (
    DamagedArchiveError,
    IncompleteArchiveError,
    InvalidInputError,
    UnsupportedArchiveError,
)
from sparcom_data.storage import DurableStore


def overwrite(archive, name: str, key, value) -> None:  # type: ignore[no-untyped-def]
    """Change an array without the Archive object."""
    zarr.open_group(DurableStore(archive.path), mode="r+", use_consolidated=False)[name][key] = value


def test_frequencies_are_means_over_prompt_tokens(typical) -> None:  # type: ignore[no-untyped-def]
    """p_ij is the mean of the instruction's mask over its T tokens."""
    for k, mask in enumerate(typical.masks):
        if k != 4:  # failed
            frequencies = activation_frequencies(typical.archive, k)
            assert frequencies.dtype == np.float64
            np.testing.assert_allclose(frequencies, mask.mean(axis=0), rtol=0, atol=1e-12)
            assert (activation_counts(typical.archive, k) == mask.sum(axis=0)).all()


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    layers=st.integers(1, 4),
    neurons=st.integers(1, 40),
    chunk_tokens=st.integers(1, 50),
    block_bytes=st.integers(1, 4000),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_counts_do_not_depend_on_chunks_or_blocks(
    make_case, lengths, layers, neurons, chunk_tokens, block_bytes, seed, data
):  # type: ignore[no-untyped-def]
    """Counts equal sums over the masks for any chunk and block sizes, with failed instructions in between."""
    failed = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=len(lengths) - 1))
    case = make_case(
        lengths,
        ["c"] * len(lengths),
        layers=layers,
        neurons=neurons,
        chunk_tokens=chunk_tokens,
        seed=seed,
        failed=failed,
    )
    spans = row_spans(case.archive, "prompt")
    seen = []
    population = choose_population(case.archive)
    for k, counts in iterate_counts(case.archive, spans, population, block_bytes=block_bytes):
        index = int(spans.instruction[k])
        seen.append(index)
        assert (counts[:, :neurons] == case.masks[index].sum(axis=0)).all()
        assert not counts[:, neurons:].any()
    assert seen == [index for index in range(len(lengths)) if index not in failed]


def test_prompt_response_and_all_rows_are_distinguished(make_case) -> None:  # type: ignore[no-untyped-def]
    """An archive of all positions gives the prompt's rows by default, and response or all rows on request."""
    case = make_case((5, 3), ("a", "b"), positions="all", responses=(4, 6))
    assert choose_positions(case.archive, None) == "prompt"
    for rows, part in (("prompt", slice(0, 5)), ("response", slice(5, 9)), ("all", slice(0, 9))):
        assert (activation_counts(case.archive, 0, positions=rows) == case.masks[0][part].sum(axis=0)).all()


def test_a_response_archive_gives_response_rows(make_case) -> None:  # type: ignore[no-untyped-def]
    """Without prompt rows, response rows are used and named; requests for prompt rows are refused."""
    case = make_case((5, 3, 4), ("a", "b", "b"), positions="response", responses=(4, 6, 0))
    assert (activation_counts(case.archive, 1) == case.masks[1].sum(axis=0)).all()
    neurons = find_isns(case.archive)
    assert (neurons.positions, neurons.without_rows, list(neurons.ids)) == ("response", 1, ["i0", "i1"])
    with pytest.raises(
        IncompleteArchiveError, match=r"positions 'prompt'.*positions 'response'.*Choose positions 'response'"
    ):
        activation_counts(case.archive, 0, positions="prompt")
    with pytest.raises(IncompleteArchiveError, match="with response tokens that count; 'i2'"):
        activation_counts(case.archive, 2)


def test_a_prompt_archive_refuses_response_rows(typical) -> None:  # type: ignore[no-untyped-def]
    """Rows that were never captured are refused, not read as zeros."""
    for rows in ("response", "all"):
        with pytest.raises(IncompleteArchiveError, match="holds masks of positions 'prompt'"):
            activation_counts(typical.archive, 0, positions=rows)


def test_an_instruction_is_named_by_id_or_index(typical) -> None:  # type: ignore[no-untyped-def]
    """An id and its index in the archive's table give the same frequencies, also after a failed instruction."""
    for index, name in ((0, "i0"), (8, "i8"), (np.int64(3), "i3")):
        expected = typical.masks[int(index)].sum(axis=0)
        assert (activation_counts(typical.archive, index) == expected).all()
        assert (activation_counts(typical.archive, name) == expected).all()
        assert (activation_frequencies(typical.archive.path, name) == expected / len(typical.masks[int(index)])).all()


def test_an_instruction_that_is_not_complete_is_refused(typical) -> None:  # type: ignore[no-untyped-def]
    """The error gives its state."""
    for instruction in (4, "i4"):
        with pytest.raises(IncompleteArchiveError, match=r"'i4' of .* is failed and has none"):
            activation_frequencies(typical.archive, instruction)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        (99, "must be 0 to 8; it is 99"),
        (-1, "must be 0 to 8; it is -1"),
        ("cls-s-0001", r"no instruction 'cls-s-0001'; ids look like \['i0', 'i1', 'i2'\]"),
    ],
)
def test_a_missing_instruction_is_refused(typical, instruction, reason: str) -> None:  # type: ignore[no-untyped-def]
    """Neither a negative index nor an unknown id is resolved to another instruction."""
    for count in (activation_counts, activation_frequencies):
        with pytest.raises(InvalidInputError, match=reason):
            count(typical.archive, instruction)


def test_progress_counts_needed_rows(typical) -> None:  # type: ignore[no-untyped-def]
    """Progress rises to the number of rows used, failed instructions not counted."""
    seen: list[tuple[int, int]] = []
    find_isns(typical.archive, progress=lambda *at: seen.append(at), block_bytes=1)
    total = sum(len(mask) for k, mask in enumerate(typical.masks) if k != 4)
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_rows_of_another_position_are_damage(typical) -> None:  # type: ignore[no-untyped-def]
    """A row with an unexpected position raises an error that names row and instruction."""
    overwrite(typical.archive, "token/position", 6, -1)
    with pytest.raises(DamagedArchiveError, match=r"row 6 of instruction 'i1' must hold position 1; .* holds -1"):
        find_isns(open_archive(typical.archive.path))


def test_set_spare_bits_are_damage(typical) -> None:  # type: ignore[no-untyped-def]
    """Bits past the last neuron would change ranks, so they are refused."""
    overwrite(typical.archive, "neuron/active", (0, 1, 2), 0b10000)
    with pytest.raises(DamagedArchiveError, match="bits past neuron 19"):
        find_isns(open_archive(typical.archive.path))


def test_a_complete_instruction_lacks_no_prompt_row(typical) -> None:  # type: ignore[no-untyped-def]
    """A complete instruction with fewer rows than its prompt is damage, not a shorter T."""
    overwrite(typical.archive, "instruction/token_length", 3, 11)
    with pytest.raises(DamagedArchiveError, match=r"all its 12 prompt rows; 'i3' .* has 11 rows"):
        find_isns(open_archive(typical.archive.path))


def test_overlapping_instructions_are_damage(typical) -> None:  # type: ignore[no-untyped-def]
    """No row belongs to two instructions."""
    overwrite(typical.archive, "instruction/token_start", 1, 4)
    with pytest.raises(DamagedArchiveError, match="those of 'i0' and 'i1'"):
        find_isns(open_archive(typical.archive.path))


def with_capture(archive, part: str, **changes: object) -> None:  # type: ignore[no-untyped-def]
    """Change the archive's attributes."""
    root = zarr.open_group(DurableStore(archive.path), mode="r+", use_consolidated=False)
    section = dict(root.attrs["sparcom"])
    section[part] = section[part] | changes
    root.attrs["sparcom"] = section
    zarr.consolidate_metadata(DurableStore(archive.path))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_unsupported_archives_are_refused(typical) -> None:  # type: ignore[no-untyped-def]
    """Archives without dense layers are unsupported; contradictory sizes are damage."""
    with_capture(typical.archive, "capture", components=["router"])
    with pytest.raises(UnsupportedArchiveError, match="holds router"):
        activation_counts(open_archive(typical.archive.path), 0)
    with_capture(typical.archive, "capture", components=["neuron"])
    with_capture(typical.archive, "model", neurons=33)
    with pytest.raises(DamagedArchiveError, match=r"must have shape \(\d+, 3, 5\) .* it has \(\d+, 3, 3\)"):
        activation_counts(open_archive(typical.archive.path), 0)
