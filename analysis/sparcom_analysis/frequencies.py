"""How often each neuron is active over the tokens of an instruction: equation 6.

Counts are kept as exact integers, c_ij = Σ_t [A^t_ij > 0]; frequencies p_ij = c_ij / T are derived from them where a
float is wanted. An archive of masks is counted here, one of counts was counted when it was captured; what follows sees
no difference. One instruction's counts are held at a time, whatever the number of tokens, beside the blocks read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.blocks import DEFAULT_BLOCK_BYTES, Block, CountBlock, read_blocks, read_count_blocks
from sparcom_analysis.kernels import add_bit_counts
from sparcom_analysis.rows import Rows, RowSpans, check_supported, choose_rows, row_spans
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def iterate_counts(
    archive: Archive,
    spans: RowSpans,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts of one instruction after the other, in the order of their rows.

    Yields:
        k, an index into `spans`, and uint32 (layer, 8 × neuron_byte), active rows of each neuron; spare columns are 0.
        The array is used again for the next instruction: copy what is to be kept.
    """
    source = _stored_counts if archive.granularity == "count" else _counted_masks
    return source(archive, spans, progress, block_bytes)


def _stored_counts(
    archive: Archive, spans: RowSpans, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts as the archive holds them."""
    padded = np.zeros((archive.layers, archive.neuron_bytes * 8), dtype=np.uint32)
    done, total = 0, int(spans.tokens.sum())
    at = 0
    for block in read_count_blocks(archive, spans.instruction, block_bytes):
        while at < len(spans) and spans.instruction[at] < block.stop:
            yield at, _stored(archive, spans, at, block, padded)
            done += int(spans.tokens[at])
            at += 1
        if progress is not None:
            progress(done, total)


def _stored(
    archive: Archive, spans: RowSpans, k: int, block: CountBlock, padded: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Counts of instruction k out of the block, padded to whole bytes of masks where the width is none."""
    index = int(spans.instruction[k])
    counts: NDArray[np.uint32] = block.counts[index - block.start]
    if (largest := int(counts.max(initial=0))) > spans.tokens[k]:
        raise DamagedArchiveError(
            f"a count must be at most the {int(spans.tokens[k])} rows of its instruction; one of "
            f"{archive.instructions.id[index]!r} in {archive.path} is {largest}. "
            "Run `sparcom verify`, then extract the archive again"
        )
    if counts.shape == padded.shape:
        return counts
    padded[:, : archive.neurons] = counts
    return padded


def _counted_masks(
    archive: Archive, spans: RowSpans, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts of the masks, block by block; an instruction may lie in several."""
    counts = np.zeros((archive.layers, archive.neuron_bytes * 8), dtype=np.uint32)
    order = np.argsort(spans.start, kind="stable").tolist()
    done, total = 0, int(spans.tokens.sum())
    at = 0
    for block in read_blocks(archive, spans, block_bytes):
        while at < len(order) and spans.start[order[at]] < block.stop:
            k = order[at]
            done += _add(archive, spans, k, block, counts)
            if spans.stop[k] > block.stop:
                break
            _check_spare_bits(archive, counts)
            yield k, counts
            counts[:] = 0
            at += 1
        if progress is not None:
            progress(done, total)


def _add(archive: Archive, spans: RowSpans, k: int, block: Block, counts: NDArray[np.uint32]) -> int:
    """Add the rows of instruction k that lie in the block; how many there are."""
    start, stop = max(int(spans.start[k]), block.start), min(int(spans.stop[k]), block.stop)
    rows = slice(start - block.start, stop - block.start)
    first = int(spans.position[k]) + start - int(spans.start[k])
    wrong = np.flatnonzero(block.positions[rows] != np.arange(first, first + stop - start))
    if len(wrong):
        row = start + int(wrong[0])
        raise DamagedArchiveError(
            f"row {row} of instruction {archive.instructions.id[int(spans.instruction[k])]!r} must hold position "
            f"{first + int(wrong[0])}; token/position of {archive.path} says "
            f"{int(block.positions[row - block.start])}. Run `sparcom verify`, then extract the archive again"
        )
    add_bit_counts(block.masks[rows], counts.reshape(-1))
    return stop - start


def _check_spare_bits(archive: Archive, counts: NDArray[np.uint32]) -> None:
    if counts[:, archive.neurons :].any():
        raise DamagedArchiveError(
            f"bits past neuron {archive.neurons - 1} of neuron/active must be 0; some in {archive.path} are set. "
            "Run `sparcom verify`, then extract the archive again"
        )


def _span_of(archive: Archive, index: int, rows: Rows | None) -> RowSpans:
    """The rows of one instruction, which must be complete and have some."""
    check_supported(archive)
    chosen = choose_rows(archive, rows)
    spans = row_spans(archive, chosen)
    here = np.flatnonzero(spans.instruction == index)
    if not len(here):
        raise IncompleteArchiveError(
            f"activation frequencies need a complete instruction with {chosen} rows; instruction {index} of "
            f"{archive.path} ({len(archive.instructions)} instructions) is none. See archive.instructions.complete"
        )
    return RowSpans(spans.instruction[here], spans.start[here], spans.stop[here], spans.position[here])


def activation_counts(archive: Archive, index: int, rows: Rows | None = None) -> NDArray[np.uint32]:
    """T · p_ij of equation 6: at how many of its tokens each neuron is active.

    Args:
        archive: an archive of masks or of counts.
        index: of the instruction in `archive.instructions`.
        rows: prompt, response or all; without it the prompt's where the archive holds them. Of counts only what was
            captured can be had.

    Returns:
        uint32 (layer, neuron).
    """
    _, counts = next(iterate_counts(archive, _span_of(archive, index, rows)))
    return counts[:, : archive.neurons].copy()


def activation_frequencies(archive: Archive, index: int, rows: Rows | None = None) -> NDArray[np.float64]:
    """p_ij of equation 6: the share of its tokens at which each neuron is active; see `activation_counts`.

    Returns:
        float64 (layer, neuron), 0 to 1.
    """
    tokens = int(_span_of(archive, index, rows).tokens[0])
    return activation_counts(archive, index, rows) / np.float64(tokens)
