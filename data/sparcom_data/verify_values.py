"""The part of an archive's check that reads the values: are masks, routes and counts there, whole and possible?

Values are read in blocks of chunks that hold something of a complete instruction, whatever the archive's size. It does
not know tokens or texts; `verify.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.errors import ArchiveError
from sparcom_data.schema import NO_EXPERT, CapturedArray, State

BLOCK_BYTES = 64 << 20

Report = Callable[[float], None]


@dataclass(slots=True)
class Check:
    """One check: what it looked at and what it found wrong; nothing found is a pass."""

    name: str
    looked_at: str = ""
    findings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


class _Progress:
    """The share of all bytes that is done."""

    def __init__(self, archive: Archive, report: Report) -> None:
        rows = {item.name: archive.array(item.name).shape[0] for item in archive.captured}
        self._total = max(1, sum(rows[item.name] * item.row_bytes for item in archive.captured))
        self._done, self._report = 0, report

    def block(self, item: CapturedArray, rows: int) -> None:
        self._done += rows * item.row_bytes
        self._report(min(1.0, self._done / self._total))


def check_values(archive: Archive, report: Report) -> list[Check]:
    """All checks that read values.

    Args:
        archive: one whose format and states are right.
        report: called with the share of the work that is done, 0 to 1.
    """
    progress = _Progress(archive, report)
    if archive.granularity == "count":
        checks = [_check_counts(archive, progress)]
    else:
        checks = [_check_masks(archive, progress)]
        if archive.moe is not None:
            checks.append(_check_routes(archive, progress))
    report(1.0)
    return checks


def _check_masks(archive: Archive, progress: _Progress) -> Check:
    """Every chunk under complete instructions is there and whole; spare bits are 0."""
    check, size = Check("masks"), 0
    for item in archive.captured:
        if not item.packed:
            continue
        spare = _spare_bits(item.neurons)
        for start, stop, block in _read_blocks(archive, item, check, progress):
            if spare and (block[..., -1] & spare).any():
                check.findings.append(
                    f"{item.name}: spare bits past neuron {item.neurons - 1} must be 0; some in rows {start} to "
                    f"{stop} are not"
                )
            size += block.nbytes
    check.looked_at = f"{size / 1e6:,.1f} MB of masks, checksums included"
    return check


def _check_routes(archive: Archive, progress: _Progress) -> Check:
    """Every row of a complete instruction has k different experts of the model, and a number as weight of each."""
    check = Check("routes")
    assert archive.moe is not None  # noqa: S101  (the caller's condition)
    trusted, rows = _trusted_rows(archive), 0
    for item in archive.captured:
        if item.component != "router":
            continue
        for start, stop, block in _read_blocks(archive, item, check, progress):
            own = block[trusted[start:stop]]
            rows += len(own)
            wrong = _wrong_weights(own) if item.spec.dtype == "float32" else _wrong_experts(own, archive.moe.experts)
            if wrong:
                check.findings.append(f"{item.name}, rows {start} to {stop}: {wrong}")
    check.looked_at = f"{rows // 2:,} rows of {len(archive.moe.layer_ids)} routers"
    return check


def _wrong_experts(chosen: NDArray[np.uint16], experts: int) -> str:
    """What is wrong with chosen experts, uint16 (rows, moe_layer, choice); empty where nothing is."""
    if unwritten := int((chosen == NO_EXPERT).sum()):
        return f"{unwritten} choices were never written"
    if beyond := int((chosen >= experts).sum()):
        return f"{beyond} choices are none of the model's {experts} experts"
    ordered = np.sort(chosen, axis=-1)
    if twice := int((ordered[..., 1:] == ordered[..., :-1]).any(axis=-1).sum()):
        return f"{twice} times an expert was chosen twice by one token"
    return ""


def _wrong_weights(weights: NDArray[np.float32]) -> str:
    """What is wrong with combine weights, float32 (rows, moe_layer, choice); empty where nothing is."""
    if bad := int((~np.isfinite(weights)).sum()):
        return f"{bad} weights are no numbers"
    return ""


def _trusted_rows(archive: Archive) -> NDArray[np.bool_]:
    """Which rows of the token axis belong to complete instructions."""
    table, trusted = archive.instructions, np.zeros(archive.tokens, dtype=bool)
    for index in table.complete:
        start = int(table.token_start[index])
        trusted[start : start + int(table.token_length[index])] = True
    return trusted


def _check_counts(archive: Archive, progress: _Progress) -> Check:
    """Every chunk under complete instructions is there and whole; no count is above the instruction's rows, and the
    experts of a router are chosen as often as its k choices at each row."""
    check, size = Check("counts"), 0
    table = archive.instructions
    for item in archive.captured:
        for start, stop, counts in _read_blocks(archive, item, check, progress):
            trusted = np.flatnonzero(table.state[start:stop] == State.COMPLETE)
            largest = counts.reshape(stop - start, -1).max(axis=1, initial=0)
            for place in trusted[largest[trusted] > table.token_length[start + trusted]]:
                check.findings.append(
                    f"instruction {table.id[start + place]!r}, {item.name}: a count of {largest[place]} is more than "
                    f"its {table.token_length[start + place]} rows"
                )
            if item.component == "router":
                check.findings.extend(_wrong_sums(archive, counts, start, trusted))
            size += counts.nbytes
    check.looked_at = f"{size / 1e6:,.1f} MB of counts, checksums included"
    return check


def _wrong_sums(archive: Archive, counts: NDArray[np.uint32], start: int, trusted: NDArray[np.int64]) -> Iterator[str]:
    assert archive.moe is not None  # noqa: S101  (there is a router)
    table, choices = archive.instructions, archive.moe.experts_per_token
    expected = table.token_length[start + trusted].astype(np.int64) * choices
    sums = counts[trusted].sum(axis=-1, dtype=np.int64)  # (instructions, moe_layer)
    for place in np.flatnonzero((sums != expected[:, None]).any(axis=1)):
        yield (
            f"instruction {table.id[start + trusted[place]]!r}: its experts must be chosen {expected[place]} times in "
            f"every layer, {choices} for each row; they are not"
        )


def _read_blocks(
    archive: Archive, item: CapturedArray, check: Check, progress: _Progress
) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """The blocks of an array that hold something of a complete instruction: (start, stop, values). What cannot be read
    becomes a finding, each once."""
    for start, stop in _complete_blocks(archive, item):
        try:
            values = archive.read_rows(item.name, start, stop)
        except ArchiveError as error:
            if str(error) not in check.findings:
                check.findings.append(str(error))
            continue
        yield start, stop, values
        progress.block(item, stop - start)


def _complete_blocks(archive: Archive, item: CapturedArray) -> Iterator[tuple[int, int]]:
    """Chunk-aligned blocks of rows that hold at least one complete instruction's row."""
    table, array = archive.instructions, archive.array(item.name)
    length, step = int(array.shape[0]), int(array.chunks[0])
    needed: NDArray[np.bool_] = np.zeros(-(-length // step), dtype=bool)
    if archive.granularity == "count":
        needed[table.complete // step] = True
    else:
        for index in table.complete:
            start, rows = int(table.token_start[index]), int(table.token_length[index])
            if rows and start + rows <= length:
                needed[start // step : -(-(start + rows) // step)] = True
    return _blocks(needed, step, step * item.row_bytes, length)


def _spare_bits(neurons: int) -> np.uint8:
    """The bits of the last byte that stand for no neuron."""
    return np.uint8((0xFF << (neurons % 8)) & 0xFF if neurons % 8 else 0)


def _blocks(needed: NDArray[np.bool_], step: int, chunk_bytes: int, length: int) -> Iterator[tuple[int, int]]:
    """Runs of needed chunks of `step` rows, cut to `BLOCK_BYTES` and to the axis: (start, stop)."""
    at_once = max(1, BLOCK_BYTES // max(1, chunk_bytes))
    chunk = 0
    while chunk < len(needed):
        if not needed[chunk]:
            chunk += 1
            continue
        stop = chunk
        while stop < len(needed) and needed[stop] and stop - chunk < at_once:
            stop += 1
        yield chunk * step, min(stop * step, length)
        chunk = stop
