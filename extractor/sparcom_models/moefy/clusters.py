"""Balanced spherical k-means: clusters of equal size by cosine similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError

_MAX_ROUNDS = 20


def balanced_clusters(rows: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster of each row, int64 (n,), for rows float32 (n, width). Each cluster has n / clusters rows.

    1. Scale rows to unit length and draw the initial centers from them by the seed.
    2. Visit pairs of row and center by ascending distance. A row joins the center if it has room left.
    3. Replace each center by the mean of its rows. Repeat steps 2 and 3 until nothing changes.

    Raises:
        InvalidInputError: n is not divisible by `clusters`.
    """
    if clusters < 1 or len(rows) % clusters or not len(rows):
        raise InvalidInputError([f"clusters must have equal sizes; {len(rows)} rows cannot be split into {clusters}"])
    directions = _normalize(rows)
    centers = directions[np.random.default_rng(seed).choice(len(rows), size=clusters, replace=False)]
    labels = _assign(directions, centers)
    for _ in range(_MAX_ROUNDS):
        centers = _normalize(np.stack([directions[labels == cluster].mean(axis=0) for cluster in range(clusters)]))
        before, labels = labels, _assign(directions, centers)
        if (labels == before).all():
            break
    return labels


def _normalize(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _assign(directions: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    room = [len(directions) // len(centers)] * len(centers)
    labels = [-1] * len(directions)
    for pair in np.argsort(-(directions @ centers.T), axis=None, kind="stable").tolist():
        row, cluster = divmod(pair, len(centers))
        if labels[row] < 0 and room[cluster]:
            labels[row] = cluster
            room[cluster] -= 1
    return np.array(labels, dtype=np.int64)
