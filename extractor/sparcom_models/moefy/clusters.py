"""Balanced k-means: rows that point the same way go together, and every cluster has the same number of them.

1. Rows are scaled to length 1 and the first centres are drawn from them. 2. Pairs of row and centre are taken from the
nearest on; a row takes the centre if it has room left. 3. Centres become the means of their rows. Steps 2 and 3 go on
until nothing changes. The same seed gives the same clusters. Knows nothing of neurons.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError

_ROUNDS = 20


def balanced_clusters(rows: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """The cluster of each row, int64 (n,), each with n / clusters rows.

    Args:
        rows: float32 (n, width).
        clusters: a divisor of n.
        seed: of the first centres.

    Raises:
        InvalidInputError: the clusters cannot be of one size.
    """
    if clusters < 1 or len(rows) % clusters or not len(rows):
        raise InvalidInputError([f"clusters are of one size: {len(rows)} rows cannot be cut into {clusters}"])
    directions = _directions(rows)
    centres = directions[np.random.default_rng(seed).choice(len(rows), size=clusters, replace=False)]
    labels = _assign(directions, centres)
    for _ in range(_ROUNDS):
        centres = _directions(np.stack([directions[labels == cluster].mean(axis=0) for cluster in range(clusters)]))
        before, labels = labels, _assign(directions, centres)
        if (labels == before).all():
            break
    return labels


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _assign(directions: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Nearest pairs first, as long as there is room."""
    clusters = len(centres)
    room = [len(directions) // clusters] * clusters
    labels = [-1] * len(directions)
    for pair in np.argsort(-(directions @ centres.T), axis=None, kind="stable").tolist():
        row, cluster = divmod(pair, clusters)
        if labels[row] < 0 and room[cluster]:
            labels[row] = cluster
            room[cluster] -= 1
    return np.array(labels, dtype=np.int64)
