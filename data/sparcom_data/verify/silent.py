"""Find layers in which no neuron is active at the last tokens of an instruction.

Gates that are not finite, from a damaged weight or an overflow, count as inactive, and attention carries them to every
later token and layer. So a layer with no active neuron from some token of an instruction to its last is a finding. A
few zeros may occur by chance: runs of fewer than MIN_BITS bits are ignored.

Only the last row of each instruction is checked first; the others are checked only if that row is all zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.schema import CapturedArray
from sparcom_data.verify.names import Names

MIN_BITS = 1024
_KINDS = {
    "neuron": "dense neuron",
    "expert_neuron": "neuron of the top-k experts",
    "shared_expert_neuron": "neuron of the shared experts",
}


class SilentRows:
    """Scans the blocks of one mask array, in row order."""

    def __init__(self, archive: Archive, item: CapturedArray, names: Names) -> None:
        self._table, self._item, self._names = archive.instructions, item, names
        self._layers = np.array(names.layers(item.component))
        self._least = -(-MIN_BITS // (item.neurons * int(np.prod(item.row[1:-1], dtype=np.int64))))
        # Carried over a block that ends inside an instruction: the next row, and the run of zero rows before it.
        self._carried: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def add(self, start: int, block: NDArray[np.uint8]) -> Iterator[str]:
        """Scan rows from `start` on, uint8 (rows, layer, …, neuron_byte); yield findings."""
        stop = start + len(block)
        owners = self._names.overlapping(start, stop)
        if not owners:
            return
        ends = [min(self._stop(index), stop) for index in owners]
        alive = self._alive(block[np.array(ends, dtype=np.int64) - 1 - start])
        for index, end, layers in zip(owners, ends, alive, strict=True):
            if layers.all():
                continue
            first = max(start, int(self._table.token_start[index]))
            run = self._run(first, block[first - start : end - start])
            if end == self._stop(index):
                yield from self._findings(index, run)
            else:
                self._carried = end, run

    def _stop(self, index: int) -> int:
        return int(self._table.token_start[index]) + int(self._table.token_length[index])

    def _alive(self, rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return whether any neuron is active: bool (rows, layer)."""
        return np.asarray(rows.reshape(len(rows), len(self._layers), -1).any(axis=2))

    def _run(self, first: int, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the number of all-zero rows up to the last of `rows`, carried rows included: (layer,)."""
        alive = self._alive(rows)
        run = np.where(alive.any(axis=0), alive[::-1].argmax(axis=0), len(rows))
        before, carried = self._carried
        return run + carried * (run == len(rows)) if before == first else run

    def _findings(self, index: int, run: NDArray[np.int64]) -> Iterator[str]:
        last = self._names.position(index, self._stop(index) - 1)
        for rows in sorted({int(rows) for rows in run if rows >= self._least}, reverse=True):
            yield silence(
                self._table.id[index],
                self._item,
                self._layers[run == rows].tolist(),
                f"from token {last - rows + 1} to its last, {last}",
            )


def silent_counts(
    archive: Archive, item: CapturedArray, index: int, largest: NDArray[np.uint32], names: Names
) -> Iterator[str]:
    """Yield a finding if all counts of a layer are 0.

    Args:
        index: index of the instruction.
        largest: largest count per layer of `item`, (layer,).
    """
    rows = int(archive.instructions.token_length[index])
    picked = archive.moe.experts_per_token if item.component == "expert_neuron" and archive.moe else 1
    if rows * picked * item.neurons < MIN_BITS or largest.all():
        return
    layers = [layer for layer, most in zip(names.layers(item.component), largest.tolist(), strict=True) if not most]
    yield silence(archive.instructions.id[index], item, layers, f"at any of its {rows} tokens")


def silence(instruction: str, item: CapturedArray, layers: list[int], when: str) -> str:
    """Return the finding for silent layers."""
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers}"
    return (
        f"instruction {instruction!r}, {where}: no {_KINDS[item.component]} is active {when}. Gates that are not "
        "finite look like this: check the model's weights, and its dtype for overflow, then run the instruction again"
    )
