"""ISN sets and expert counts from arrays, without an archive on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import Population
from sparcom_analysis.archive.rows import TokenFacts
from sparcom_analysis.compare import ExpertComparison, IsnComparison
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.matching import match_instructions
from sparcom_analysis.options import Options


def _shared(
    count: int, categories: Sequence[str], ids: Sequence[str] | None, name: str, options: Any
) -> dict[str, Any]:
    model = SimpleNamespace(id=f"org/{name}")
    archive = SimpleNamespace(path=f"{name}.zarr", granularity="count", attributes=SimpleNamespace(model=model))
    return {
        "archive": archive,
        "options": Options(**{"n_resamples": 20, "n_permutations": 19} | options),
        "positions": "prompt",
        "token_facts": TokenFacts(),
        "instruction": np.arange(count),
        "ids": [f"i{k}" for k in range(count)] if ids is None else list(ids),
        "categories": list(categories),
        "sources": [""] * count,
        "without_rows": 0,
    }


def isns_of(
    masks: NDArray[np.bool_],
    categories: Sequence[str],
    ids: Sequence[str] | None = None,
    *,
    name: str = "base",
    memory_bytes: int | None = None,
    **options: Any,
) -> IsnSets:
    """Return the sets of bool (n, layer, expert, neuron), in memory or in a file; layers are numbered 0, 2, 4, …"""
    count, layers, experts, width = masks.shape
    packed = np.packbits(masks, axis=3, bitorder="little").reshape(count, -1)
    words = np.zeros((count, -(-packed.shape[1] // 8)), dtype=np.uint64)
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    sets = Bitsets(*words.shape, memory_bytes=memory_bytes)
    for k, row in enumerate(words):
        sets[k] = row
    return IsnSets(
        **_shared(count, categories, ids, name, options),
        tokens=np.arange(1, count + 1),
        population=Population(
            "neuron" if experts == 1 else "expert_neuron", list(range(0, 2 * layers, 2)), experts, 1, width
        ),
        minimum_count=np.ones(count, dtype=np.int64),
        sets=sets,
        layer_counts=masks.sum(axis=(2, 3)),
        dead_layers=np.zeros((count, layers), dtype=np.bool_),
    )


def experts_of(
    counts: NDArray[Any], categories: Sequence[str], *, name: str = "base", tokens: Any = None, **options: Any
) -> ExpertCounts:
    """Return counts (n, layer, expert) as a result, layers numbered 0, 2, 4, …; T is the sum over experts."""
    return ExpertCounts(
        **_shared(len(counts), categories, None, name, options),
        tokens=counts.sum(axis=2).max(axis=1).astype(np.int64) if tokens is None else tokens,
        counts=counts.astype(np.uint32),
        layer_ids=list(range(0, 2 * counts.shape[1], 2)),
        top_k=1,
    )


def compared(base: Any, tuned: Any) -> Any:
    """Return the comparison of two `IsnSets` or two `ExpertCounts`."""
    kind = IsnComparison if isinstance(base, IsnSets) else ExpertComparison
    return kind(base, tuned, match_instructions(base, tuned))


@pytest.fixture(scope="session")
def arrays() -> SimpleNamespace:
    """Return `isns_of`, `experts_of` and `compared`, for tests of any scope."""
    return SimpleNamespace(isns=isns_of, experts=experts_of, compare=compared)


@pytest.fixture(scope="session")
def resampled() -> Callable[..., NDArray[np.float64]]:
    """Return a function: means of values (n, …) per resample, by loops over the draws: (resample, …)."""

    def means(values: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = [[values[k] for k, times in enumerate(row) for _ in range(int(times))] for row in weights]
        return np.array([np.mean(one, axis=0) for one in drawn])

    return means
