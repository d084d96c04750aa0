"""Counts of packed masks equal the sums of their bits."""

from __future__ import annotations

import numpy as np
import pytest

from sparcom_extractor.writer.counting import MANY_ROWS, count_expert_neurons, count_neurons


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 9, 700])
@pytest.mark.parametrize("neurons", [5, 16, 21])
def test_counts_are_sums_of_bits(rows: int, neurons: int) -> None:
    """For dense and expert neurons, with few and many rows per expert, each counter grows by the bits of its rows."""
    layers, experts, top_k = 2, 6, 3
    rng = np.random.default_rng(rows)
    bits = rng.random((rows, layers, top_k, neurons)) < 0.4
    topk_ids = rng.random((rows, layers, experts)).argsort(axis=-1)[..., :top_k].astype(np.uint16)
    masks = np.packbits(bits, axis=-1, bitorder="little")
    dense, per_expert = np.ones((layers, neurons), np.uint32), np.ones((layers, experts, neurons), np.uint32)
    expected = per_expert.copy()
    for row, layer, k in np.ndindex(rows, layers, top_k):
        expected[layer, topk_ids[row, layer, k]] += bits[row, layer, k]
    count_neurons(masks[:, :, 0], dense)
    count_expert_neurons(masks, topk_ids, per_expert)
    np.testing.assert_array_equal(dense, 1 + bits[:, :, 0].sum(axis=0))
    np.testing.assert_array_equal(per_expert, expected)
    assert (rows * top_k >= MANY_ROWS * experts) == (rows == 700), "both branches are tested"


def test_an_expert_selected_twice_for_a_token_counts_twice() -> None:
    """Both of its masks count, even in a step of few rows."""
    masks = np.full((1, 1, 2, 1), 0b101, dtype=np.uint8)
    counts = np.zeros((1, 4, 3), dtype=np.uint32)
    count_expert_neurons(masks, np.array([[[2, 2]]], dtype=np.uint16), counts)
    np.testing.assert_array_equal(counts[0, 2], [2, 0, 2])
    assert counts.sum() == 4
