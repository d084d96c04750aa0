"""Equation 10 and figure 5, against scipy, Python sets and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from sparcom_analysis import category_similarity, instruction_specific_neurons, isn_by_layer
from sparcom_analysis.isn import InstructionNeurons, Selection
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_analysis.measures.similarity import jaccard_blocks
from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.archive.populations import Population


def neurons_from(masks: np.ndarray, categories: list[str]) -> InstructionNeurons:
    """Sets given as bool (n, layer, neuron)."""
    n, layers, width = masks.shape
    packed = np.packbits(masks, axis=2, bitorder="little").reshape(n, -1)
    words = np.zeros((n, -(-packed.shape[1] // 8)), dtype=np.uint64)
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    sets = PackedSets(*words.shape)
    for k, row in enumerate(words):
        sets[k] = row
    return InstructionNeurons(
        selection=Selection(threshold=0.5),
        rows="prompt",
        population=Population("neuron", list(range(layers)), 1, 1, width),
        instruction=np.arange(n),
        ids=[f"i{k}" for k in range(n)],
        categories=categories,
        tokens=np.ones(n, dtype=np.int64),
        minimum_count=np.ones(n, dtype=np.int64),
        sets=sets,
        layer_counts=masks.sum(axis=2),
        without_rows=0,
    )


def jaccard_matrix(neurons: InstructionNeurons) -> np.ndarray:
    full = np.zeros((len(neurons), len(neurons)))
    for rows, columns, block in jaccard_blocks(neurons):
        full[rows, columns] = block
    return np.triu(full) + np.triu(full, 1).T


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(2, 90),
    layers=st.integers(1, 3),
    width=st.integers(1, 70),
    rate=st.sampled_from([0.02, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_pairs_equal_scipy(count: int, layers: int, width: int, rate: float, seed: int) -> None:
    """The Jaccard index of every pair is 1 minus scipy's Jaccard distance, but for two empty sets, which are 0."""
    masks = np.random.default_rng(seed).random((count, layers, width)) < rate
    flat = masks.reshape(count, -1)
    expected = 1 - cdist(flat, flat, "jaccard")
    empty = ~flat.any(axis=1)
    expected[np.ix_(empty, empty)] = 0
    np.testing.assert_allclose(jaccard_matrix(neurons_from(masks, ["c"] * count)), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    categories=st.lists(st.sampled_from(["CLS", "", "GEN", "Übersetzen"]), min_size=2, max_size=80),
    rate=st.sampled_from([0.01, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_categories_equal_loops_over_sets(categories: list[str], rate: float, seed: int) -> None:
    """Both matrices are the plain means over pairs of Python sets, self pairs counted and left out."""
    masks = np.random.default_rng(seed).random((len(categories), 2, 23)) < rate
    sets = [{(int(j), int(i)) for j, i in zip(*np.nonzero(mask), strict=True)} for mask in masks]
    result = category_similarity(neurons_from(masks, categories))
    order = list(dict.fromkeys(categories))
    assert list(result.categories) == [name or "(none)" for name in order]
    for a, first in enumerate(order):
        for b, second in enumerate(order):
            pairs = [
                (x, y, len(sets[x] & sets[y]) / len(sets[x] | sets[y]) if sets[x] | sets[y] else 0.0)
                for x in range(len(sets))
                for y in range(len(sets))
                if categories[x] == first and categories[y] == second
            ]
            others = [value for x, y, value in pairs if x != y]
            assert result.matrix[a, b] == pytest.approx(np.mean([value for *_, value in pairs]), abs=1e-12)
            if others:
                assert result.without_self[a, b] == pytest.approx(np.mean(others), abs=1e-12)
            else:
                assert np.isnan(result.without_self[a, b])


def test_block_size_of_pairs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On however many cores no digit of the means changes, and with other blocks no more than rounding does."""
    masks = np.random.default_rng(3).random((300, 2, 40)) < 0.2
    neurons = neurons_from(masks, [str(k % 3) for k in range(300)])
    expected = category_similarity(neurons)
    for cores in (1, 2, 16):
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        found = category_similarity(neurons)
        np.testing.assert_array_equal(found.matrix, expected.matrix)
        np.testing.assert_array_equal(found.without_self, expected.without_self)
    for paired in (1, 7, 299):
        monkeypatch.setattr("sparcom_analysis.resampling.pair_means.PAIRED", paired)
        found = category_similarity(neurons)
        np.testing.assert_allclose(found.matrix, expected.matrix, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.without_self, expected.without_self, rtol=0, atol=1e-12)


def test_layer_counts_are_means_over_the_category(typical) -> None:  # type: ignore[no-untyped-def]
    """Each cell is the mean over the category's complete instructions of their ISNs in that layer."""
    neurons = instruction_specific_neurons(typical.archive, epsilon=0.2)
    result = isn_by_layer(neurons)
    assert list(result.categories) == ["QA", "CODE", "(none)"]
    for row, name in enumerate(["QA", "CODE", ""]):
        members = [k for k, category in enumerate(neurons.categories) if category == name]
        for layer in range(3):
            mean = sum(int(neurons.mask(k)[layer].sum()) for k in members) / len(members)
            assert result.mean_count[row, layer] == pytest.approx(mean, abs=1e-12)


def test_the_label_of_no_category_never_merges_two() -> None:
    """A category that is really called "(none)" stays apart from instructions without one."""
    names = ["", "(none)", "a", "", "(no category)"]
    labels = category_labels(names)
    assert labels[1:] == ["(none)", "a", "(no category)"]
    assert len(set(labels)) == 4
    assert category_codes(names).tolist() == [0, 1, 2, 0, 3]
