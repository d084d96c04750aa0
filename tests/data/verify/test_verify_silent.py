"""A layer with no active neuron up to an instruction's last token is found; nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from sparcom_data.archive import open_archive
from sparcom_data.schema.metadata import Granularity
from sparcom_data.testing import fill_array, write_random_archive, write_random_moe_archive
from sparcom_data.verify import values as verify_values
from sparcom_data.verify import verify_archive

REMEDY = "Gates that are not finite look like this"


def found(path: Path) -> list[str]:
    return [text for check in verify_archive(open_archive(path), None) for text in check.findings]


def span(path: Path, instruction: int) -> tuple[int, int]:
    table = open_archive(path).instructions
    start = int(table.token_start[instruction])
    return start, start + int(table.token_length[instruction])


def write_masks(path: Path, masks: NDArray[np.bool_]) -> None:
    fill_array(path, "neuron/active", np.packbits(masks, axis=-1, bitorder="little"))


@pytest.fixture
def masks(tmp_path: Path) -> NDArray[np.bool_]:
    """Write masks of ten instructions, three layers of 600 neurons, to the archive a.zarr."""
    truth: NDArray[np.bool_] = write_random_archive(tmp_path / "a.zarr", neurons=600, lengths=(6, 12))
    return truth


@pytest.mark.parametrize("block", [1, verify_values.BLOCK_BYTES])
@pytest.mark.parametrize("rows", [2, 5, None])
def test_a_layer_that_falls_silent_is_found(
    rows: int | None, block: int, masks: NDArray[np.bool_], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence from some token to the last, or at all tokens, is found across any blocks; the finding names them."""
    monkeypatch.setattr(verify_values, "BLOCK_BYTES", block)
    path = tmp_path / "a.zarr"
    assert found(path) == []
    start, stop = span(path, 4)
    first = 0 if rows is None else stop - start - rows
    masks[start + first : stop, 1:] = False
    write_masks(path, masks)
    (finding,) = found(path)
    last = stop - start - 1
    assert finding.startswith(
        f"instruction 'i004', layers [1, 2]: no dense neuron is active from token {first} to its last, {last}. {REMEDY}"
    )


def test_zeros_before_the_last_token_and_few_zeros_are_ignored(masks: NDArray[np.bool_], tmp_path: Path) -> None:
    """Only silence up to the last token counts, and 600 zeros may be a sparse row."""
    start, stop = span(tmp_path / "a.zarr", 4)
    masks[start : stop - 1, 1] = False
    masks[stop - 1, 2] = False
    write_masks(tmp_path / "a.zarr", masks)
    assert found(tmp_path / "a.zarr") == []


@pytest.mark.parametrize("block", [1, verify_values.BLOCK_BYTES])
def test_an_active_token_ends_a_silence(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with an active neuron ends a run of zeros, across blocks; unreadable blocks do not extend it."""
    monkeypatch.setattr(verify_values, "BLOCK_BYTES", block)
    path = tmp_path / "a.zarr"
    masks = write_random_archive(path, neurons=600, lengths=(12, 12), chunk_tokens=2)
    start, stop = span(path, 4)
    masks[start : stop - 4, 1] = False
    masks[stop - 2 : stop, 1] = False
    write_masks(path, masks)
    (finding,) = found(path)
    assert "'i004', layer 1: no dense neuron is active from token 10 to its last, 11" in finding
    masks[start:stop, 1] = False
    write_masks(path, masks)
    (path / f"neuron/active/c.{(stop - 4) // 2}.0.0").unlink()
    damage, silence = found(path)
    assert "It holds data of the instructions 'i004'" in damage
    assert "from token 10 to its last, 11" in silence


def test_failed_instructions_and_small_layers_are_ignored(tmp_path: Path) -> None:
    """Failed instructions and small layers are not checked."""
    path = tmp_path / "a.zarr"
    masks = write_random_archive(path, neurons=600, lengths=(6, 12), failed=(4,))
    assert found(path) == []
    write_random_archive(tmp_path / "small.zarr", neurons=20)
    write_masks(tmp_path / "small.zarr", np.zeros((open_archive(tmp_path / "small.zarr").tokens, 3, 20), dtype=bool))
    assert found(tmp_path / "small.zarr") == []
    write_masks(path, np.zeros_like(masks))
    assert len(found(path)) == 9


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_experts_are_checked_and_layers_have_the_models_numbers(granularity: Granularity, tmp_path: Path) -> None:
    """MoE layer 1, after one dense layer, is reported as the model's layer 2; expert populations are separate."""
    path = tmp_path / "moe.zarr"
    write_random_moe_archive(path, expert_neurons=304, shared_neurons=400, lengths=(6, 12), granularity=granularity)
    assert found(path) == []
    what = "active" if granularity == "token" else "count"
    for component in ("expert_neuron", "shared_expert_neuron"):
        values = np.asarray(zarr.open_array(path / component / what, mode="r")[:])
        start, stop = span(path, 4) if granularity == "token" else (4, 5)
        values[start:stop, 1] = 0
        fill_array(path, f"{component}/{what}", values)
    routed, shared = found(path)
    assert routed.startswith("instruction 'i004', layer 2: no neuron of the top-k experts is active ")
    assert shared.startswith("instruction 'i004', layer 2: no neuron of the shared experts is active ")
    when = "from token 0 to its last" if granularity == "token" else "at any of its "
    assert when in routed
    assert when in shared


def test_counts_of_a_dense_layer(tmp_path: Path) -> None:
    """A layer without any count is found, one with a single count is not."""
    path = tmp_path / "a.zarr"
    counts = write_random_archive(path, neurons=600, lengths=(6, 12), granularity="count")
    counts[3, 0], counts[4, 0] = 0, 0
    counts[4, 0, 599] = 1
    fill_array(path, "neuron/count", counts)
    (finding,) = found(path)
    assert finding.startswith("instruction 'i003', layer 0: no dense neuron is active at any of its ")
