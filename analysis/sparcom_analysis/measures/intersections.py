"""How many neurons every two instructions' sets share, block by block: what the Jaccard index is made of.

Sets that hold few of all neurons are compared by elements (`kernels.sparse`), 512 of them with all later ones at a time
where that takes little memory; others by all words of both (`kernels.neurons`). The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.neurons import intersection_sizes
from sparcom_analysis.kernels.sparse import MOST_ROWS, is_sparse, sparse_intersection_sizes
from sparcom_analysis.measures import pairs
from sparcom_analysis.measures.sets import PackedSets

MOST_BYTES = 32 << 20  # of the sets of one side, and of the numbers that wait to be taken

Sizes = NDArray[np.signedinteger[Any]]


def shared_blocks(sets: PackedSets, elements: int) -> Iterator[tuple[slice, slice, Sizes]]:
    """Sizes of the intersections of all pairs, in the order of `pair_blocks`.

    Args:
        elements: of all sets together.

    Yields:
        sets of the rows and of the columns, and how many elements each two share, (rows, columns). Where rows are
        columns, what is left of the diagonal may be anything.
    """
    yield from (_by_elements if is_sparse(elements, sets.shape) else _by_words)(sets)


def _by_words(sets: PackedSets) -> Iterator[tuple[slice, slice, Sizes]]:
    held, block = slice(0, 0), sets.rows(0, 0)
    for rows, columns in pairs.pair_blocks(len(sets)):
        if rows != held:
            held, block = rows, sets.rows(rows.start, rows.stop)
        others = block if rows == columns else sets.rows(columns.start, columns.stop)
        yield rows, columns, intersection_sizes(block, others, later_only=rows == columns)


def _by_elements(sets: PackedSets) -> Iterator[tuple[slice, slice, Sizes]]:
    side = _side(sets)
    begin, strip = 0, np.empty((0, 0), dtype=np.int32)
    for rows, columns in pairs.pair_blocks(len(sets)):
        if rows.stop > begin + len(strip):
            begin = rows.start
            strip = _strip(sets, begin, min(begin + side, len(sets)))
        top, left = rows.start - begin, columns.start - begin
        yield rows, columns, strip[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def _strip(sets: PackedSets, begin: int, end: int) -> NDArray[np.int32]:
    """int32 (end - begin, all from begin on): what sets begin..end share with themselves and every later one."""
    block = sets.rows(begin, end)
    strip = np.empty((end - begin, len(sets) - begin), dtype=np.int32)
    for first in range(begin, len(sets), end - begin):
        last = min(first + end - begin, len(sets))
        strip[:, first - begin : last - begin] = sparse_intersection_sizes(block, sets.rows(first, last))
    return strip


def _side(sets: PackedSets) -> int:
    """How many sets are compared with all later ones at once: rows of one block of pairs, or of several."""
    count, words = sets.shape
    rows = max(1, MOST_ROWS // pairs.PAIRED) * pairs.PAIRED
    return rows if 8 * rows * words <= MOST_BYTES and 4 * rows * count <= MOST_BYTES else pairs.PAIRED
