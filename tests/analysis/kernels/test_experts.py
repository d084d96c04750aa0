"""Compiled loops over top-k experts, checked against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis.kernels import compiled as kernels
from sparcom_analysis.kernels import experts as expert_kernels


def random_topk_ids(rng: np.random.Generator, rows: int, layers: int, experts: int, top_k: int) -> NDArray[np.uint16]:
    """Random top-k ids, distinct per row and layer."""
    return rng.random((rows, layers, experts)).argsort(axis=-1)[..., :top_k].astype(np.uint16)


def expected_counts(masks: NDArray[np.uint8], chosen: NDArray[np.uint16], experts: int) -> NDArray[np.int64]:
    """The sum of equation 8, expert by expert: (layer, expert, bit)."""
    bits = np.unpackbits(masks, axis=-1, bitorder="little")
    return np.stack(
        [(bits * (chosen == expert)[..., None]).sum(axis=(0, 2), dtype=np.int64) for expert in range(experts)], axis=1
    )


@settings(deadline=None, max_examples=20)
@given(
    rows=st.sampled_from([0, 1, 7, 255, 256, 600]),
    layers=st.integers(1, 4),
    experts=st.integers(1, 9),
    width=st.integers(1, 6),
    cores=st.sampled_from([1, 2, 7]),
    data=st.data(),
)
def test_expert_bits_equal_those_of_numpy(
    rows: int, layers: int, experts: int, width: int, cores: int, data: st.DataObject
) -> None:
    """Each mask counts only for its expert, beyond 255 rows per expert and on any number of cores."""
    top_k = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    masks = rng.integers(0, 256, size=(rows, layers, top_k, width), dtype=np.uint8)
    masks |= np.uint8(data.draw(st.sampled_from([0, 255])))  # all neurons active: byte lanes are full after 255 rows
    chosen = random_topk_ids(rng, rows, layers, experts, top_k)
    before = rng.integers(0, 2**31, size=(layers, experts * width * 8), dtype=np.uint32)
    counts = before.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cores", lambda: cores)
        patch.setattr(kernels, "MIN_SPLIT_BYTES", 0)
        expert_kernels.add_expert_bit_counts(masks, chosen, counts)
    assert (counts == before + expected_counts(masks, chosen, experts).reshape(layers, -1)).all()


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(0, 50), layers=st.integers(1, 4), experts=st.integers(1, 9), data=st.data())
def test_expert_counts_equal_numpy(rows: int, layers: int, experts: int, data: st.DataObject) -> None:
    """Each assignment adds 1 to its layer's expert."""
    top_k = data.draw(st.integers(1, experts))
    chosen = random_topk_ids(np.random.default_rng(rows), rows, layers, experts, top_k)
    counts = np.ones((layers, experts), dtype=np.uint32)
    expert_kernels.add_expert_counts(chosen, counts)
    expected = [[1 + int((chosen[:, layer] == expert).sum()) for expert in range(experts)] for layer in range(layers)]
    assert counts.tolist() == expected


@pytest.mark.parametrize("value", [6, 65_535, "again"])
def test_invalid_experts_are_found(value: int | str) -> None:
    """An id past the last expert, no data, or the same expert twice in a row and layer: the first place is named."""
    chosen = random_topk_ids(np.random.default_rng(0), 9, 3, 6, 4)
    assert expert_kernels.invalid_expert(chosen, 6) is None
    chosen[5, 1, 2] = chosen[5, 1, 0] if value == "again" else value
    chosen[7, 0, 0] = 65_535
    assert expert_kernels.invalid_expert(chosen, 6) == (5, 1, 2)


def test_shapes_that_disagree_are_refused() -> None:
    """The caller checks bounds, because compiled code does not."""
    masks, chosen = np.zeros((2, 3, 2, 1), np.uint8), np.zeros((2, 3, 2), np.uint16)
    for wrong in (np.zeros((3, 12), np.uint32), np.zeros((2, 16), np.uint32), np.zeros((3, 16), np.int64)):
        with pytest.raises(ValueError, match="must agree"):
            expert_kernels.add_expert_bit_counts(masks, chosen, wrong)
    with pytest.raises(ValueError, match="counts must be uint32"):
        expert_kernels.add_expert_counts(chosen, np.zeros((2, 4), np.uint32))


@settings(deadline=None, max_examples=20)
@given(layers=st.integers(1, 9), columns=st.integers(1, 40), least=st.integers(1, 9), seed=st.integers(0, 9))
def test_selected_bits_equal_packbits(layers: int, columns: int, least: int, seed: int) -> None:
    """Entries with enough counts are set as by numpy.packbits, and counted per layer, on any number of cores."""
    counts = np.random.default_rng(seed).integers(0, 10, size=(layers, columns * 8), dtype=np.uint32)
    packed, sizes = np.full((layers, columns), 255, np.uint8), np.full(layers, -1, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "MIN_SPLIT_BYTES", 8)
        kernels.pack_at_least(counts, least, packed, sizes)
        assert kernels.histogram(counts.reshape(-1), 9).tolist() == np.bincount(counts.ravel(), minlength=10).tolist()
    assert (packed == np.packbits(counts >= least, axis=1, bitorder="little")).all()
    assert (sizes == (counts >= least).sum(axis=1)).all()
