"""Memberships of given masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.measures.general_unique.members import Membership


def membership_of(masks: NDArray[np.bool_], codes: object, memory_bytes: int | None = None) -> Membership:
    """Return the membership of masks, bool (n, layer, expert, id), with one category code each; 0 bytes means in a
    file.
    """
    n, layers, experts, width = masks.shape
    packed = np.packbits(masks, axis=3, bitorder="little").reshape(n, -1)
    sets = Bitsets(n, -(-packed.shape[1] // 8), memory_bytes=memory_bytes)
    for k, row in enumerate(packed):
        words = np.zeros(sets.shape[1], dtype=np.uint64)
        words.view(np.uint8)[: len(row)] = row
        sets[k] = words
    return Membership(np.array(codes), layers, experts, width, sets)


@pytest.fixture(scope="session")
def membership() -> Callable[..., Membership]:
    """Return `membership_of`."""
    return membership_of
