"""Instructions that an earlier session has ended: their rows are final, and those of complete ones are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.schema import State
from sparcom_data.schema.metadata import parse_attributes
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.writer.targets import ArrayPart


def _none(*shape: int) -> NDArray[np.int64]:
    return np.zeros(shape, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Settled:
    """Complete and failed instructions, and their rows on the first axis of masks or counts.

    instructions: indices, int64 (n,). final: reserved rows of all of them. kept: rows of complete ones that hold data.
    Both are ranges [start, stop), int64 (ranges, 2), ascending and apart.
    """

    instructions: NDArray[np.int64] = field(default_factory=lambda: _none(0))
    final: NDArray[np.int64] = field(default_factory=lambda: _none(0, 2))
    kept: NDArray[np.int64] = field(default_factory=lambda: _none(0, 2))

    def kept_rows(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of the rows [start, stop) are kept, bool (rows,)."""
        rows = np.zeros(stop - start, dtype=np.bool_)
        first = int(np.searchsorted(self.kept[:, 1], start, side="right"))
        last = int(np.searchsorted(self.kept[:, 0], stop))
        for begin, end in self.kept[first:last].tolist():
            rows[max(begin - start, 0) : end - start] = True
        return rows


NOTHING_SETTLED = Settled()


def read_settled(parts: Sequence[ArrayPart]) -> Settled:
    """Read which instructions of the parts' archive are complete or failed."""
    archive = parts[0].target.archive
    if archive is None:
        return NOTHING_SETTLED
    with archive.folder.unlocked_on_error():
        return _read_settled(archive)


def _read_settled(archive: PinnedArchive) -> Settled:
    group = zarr.open_group(archive.root, mode="r", use_consolidated=False)
    capture = parse_attributes(dict(group.attrs), str(archive.path)).capture
    state, start, length = (
        np.asarray(zarr.open_array(archive.root / "instruction" / name, mode="r")[:])
        for name in ("state", "token_start", "token_length")
    )
    settled, complete = np.flatnonzero(np.isin(state, (State.COMPLETE, State.FAILED))), state == State.COMPLETE
    if capture.granularity == "count":
        index = np.arange(len(state))
        return Settled(
            settled, _merge(index[settled], index[settled] + 1), _merge(index[complete], index[complete] + 1)
        )
    tokens = zarr.open_array(archive.root / "token/id", mode="r").shape[0]
    stop = np.append(start[1:], tokens)  # instructions lie one after the other
    return Settled(settled, _merge(start[settled], stop[settled]), _merge(start[complete], (start + length)[complete]))


def _merge(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join ascending ranges that touch, and omit empty ones: int64 (ranges, 2)."""
    holds = stops > starts
    starts, stops = starts[holds].astype(np.int64), stops[holds].astype(np.int64)
    gaps = starts[1:] > stops[:-1]
    return np.stack([starts[np.append(True, gaps)[: len(starts)]], stops[np.append(gaps, True)[: len(stops)]]], axis=1)
