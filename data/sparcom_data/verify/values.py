"""Check the values of an archive: masks, routes and counts exist, are undamaged and are possible.

Values are read once, in blocks of chunks that overlap complete instructions, so memory does not grow with the archive.
A block that cannot be read is read chunk by chunk, so that every damaged chunk is found and the others are checked.
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
from sparcom_data.verify.names import Names
from sparcom_data.verify.silent import SilentRows, silent_counts

BLOCK_BYTES = 64 << 20

Report = Callable[[float], None]


@dataclass(slots=True)
class Check:
    """Result of one check, passed if it has no findings. looked_at: scope of the check. notes: explain findings."""

    name: str
    looked_at: str = ""
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the check has no findings."""
        return not self.findings


class _Progress:
    """Reports the fraction of all bytes that were checked."""

    def __init__(self, archive: Archive, report: Report) -> None:
        rows = {item.name: archive.array(item.name).shape[0] for item in archive.captured}
        self._total = max(1, sum(rows[item.name] * item.row_bytes for item in archive.captured))
        self._done, self._report = 0, report

    def block(self, item: CapturedArray, rows: int) -> None:
        self._done += rows * item.row_bytes
        self._report(min(1.0, self._done / self._total))


def check_values(archive: Archive, report: Report) -> list[Check]:
    """Run all checks that read values.

    Args:
        archive: an archive with valid format and states.
        report: called with the completed fraction of the work, 0 to 1.
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
    """Check that chunks of complete instructions exist undamaged, spare bits are 0, and no layer falls silent."""
    check, size, names = Check("masks"), 0, Names(archive)
    for item in archive.captured:
        if not item.packed:
            continue
        spare, silent = _spare_bits(item.neurons), SilentRows(archive, item, names)
        for start, _, block in _read_blocks(archive, item, check, progress, names):
            if spare and (wrong := block[..., -1] & spare).any():
                row, layer = np.argwhere(wrong)[0, :2]
                check.findings.append(
                    f"{item.name}: spare bits past neuron {item.neurons - 1} must be 0; {int((wrong > 0).sum())} masks "
                    f"have some, the first at {names.row(start + row)}, layer {names.layers(item.component)[layer]}"
                )
            check.findings.extend(silent.add(start, block))
            size += block.nbytes
    check.looked_at = f"{size / 1e6:,.1f} MB of masks, checksums included"
    return check


def _check_routes(archive: Archive, progress: _Progress) -> Check:
    """Check that every row of a complete instruction has k distinct experts of the model with finite weights."""
    check, names = Check("routes"), Names(archive)
    assert archive.moe is not None  # noqa: S101  (the caller's condition)
    trusted, rows = _trusted_rows(archive), 0
    for item in archive.captured:
        if item.component != "router":
            continue
        for start, stop, block in _read_blocks(archive, item, check, progress, names):
            own = np.flatnonzero(trusted[start:stop])
            rows += len(own)
            weights = item.spec.dtype == "float32"
            what, wrong = _wrong_weights(block[own]) if weights else _wrong_experts(block[own], archive.moe.experts)
            if wrong.any():
                row, layer = np.argwhere(wrong)[0]
                check.findings.append(
                    f"{item.name}: {what}, the first at {names.row(start + own[row])}, layer "
                    f"{archive.moe.layer_ids[layer]}: {block[own[row], layer].tolist()}"
                )
    check.looked_at = f"{rows // 2:,} rows of {len(archive.moe.layer_ids)} routers"
    return check


def _wrong_experts(topk_ids: NDArray[np.uint16], experts: int) -> tuple[str, NDArray[np.bool_]]:
    """Return the problem of top-k ids, uint16 (rows, moe_layer, choice), and its location: bool (rows, moe_layer)."""
    beyond = topk_ids >= experts
    unwritten = topk_ids == NO_EXPERT
    if unwritten.any():
        return f"{int(unwritten.sum())} expert ids were never written", np.asarray(unwritten.any(axis=-1))
    if beyond.any():
        return f"{int(beyond.sum())} expert ids are not below {experts}", np.asarray(beyond.any(axis=-1))
    ordered = np.sort(topk_ids, axis=-1)
    twice = np.asarray((ordered[..., 1:] == ordered[..., :-1]).any(axis=-1))
    return f"{int(twice.sum())} top-k lists repeat an expert", twice


def _wrong_weights(weights: NDArray[np.float32]) -> tuple[str, NDArray[np.bool_]]:
    """Return the problem of combine weights, float32 (rows, moe_layer, choice), and its location."""
    bad = ~np.isfinite(weights)
    return f"{int(bad.sum())} weights are not finite", np.asarray(bad.any(axis=-1))


def _trusted_rows(archive: Archive) -> NDArray[np.bool_]:
    """Return which rows of the token axis belong to complete instructions: bool (token,)."""
    table, trusted = archive.instructions, np.zeros(archive.tokens, dtype=bool)
    for index in table.complete:
        start = int(table.token_start[index])
        trusted[start : start + int(table.token_length[index])] = True
    return trusted


def _check_counts(archive: Archive, progress: _Progress) -> Check:
    """Check counts of complete instructions: chunks are intact, no count exceeds the rows, and no layer is silent.
    The counts of a router's experts must sum to k per row."""
    check, size, names = Check("counts"), 0, Names(archive)
    table = archive.instructions
    for item in archive.captured:
        for start, stop, counts in _read_blocks(archive, item, check, progress, names):
            largest = counts.reshape(*counts.shape[:2], -1).max(axis=2, initial=0)  # (instructions, layer)
            for offset in np.flatnonzero(table.state[start:stop] == State.COMPLETE):
                index = int(start + offset)
                check.findings.extend(_too_many(archive, item, index, counts[offset], largest[offset], names))
                if item.component == "router":
                    check.findings.extend(_wrong_sums(archive, counts[offset], index))
                else:
                    check.findings.extend(silent_counts(archive, item, index, largest[offset], names))
            size += counts.nbytes
    check.looked_at = f"{size / 1e6:,.1f} MB of counts, checksums included"
    return check


def _too_many(
    archive: Archive,
    item: CapturedArray,
    index: int,
    counts: NDArray[np.uint32],
    largest: NDArray[np.uint32],
    names: Names,
) -> Iterator[str]:
    """Yield a finding if a count of an instruction, (layer, …), exceeds its rows."""
    rows = int(archive.instructions.token_length[index])
    if not (largest > rows).any():
        return
    layer = int(largest.argmax())
    at = ", ".join(
        f"{axis.removesuffix('_byte')} {number}"
        for axis, number in zip(
            item.spec.dimensions[2:], np.unravel_index(counts[layer].argmax(), counts[layer].shape), strict=True
        )
    )
    yield (
        f"instruction {archive.instructions.id[index]!r}, {item.name}, layer {names.layers(item.component)[layer]}, "
        f"{at}: a count of {largest[layer]} exceeds its {rows} rows"
    )


def _wrong_sums(archive: Archive, counts: NDArray[np.uint32], index: int) -> Iterator[str]:
    """Yield a finding if expert counts of an instruction, (moe_layer, expert), do not sum to k per row."""
    assert archive.moe is not None  # noqa: S101  (there is a router)
    table, topk = archive.instructions, archive.moe.experts_per_token
    expected = int(table.token_length[index]) * topk
    wrong = counts.sum(axis=-1, dtype=np.int64) != expected
    if wrong.any():
        layers = np.array(archive.moe.layer_ids)[wrong].tolist()
        yield (
            f"instruction {table.id[index]!r}: expert counts of a layer must sum to {expected}, {topk} per row; those "
            f"of layers {layers} do not"
        )


def _read_blocks(
    archive: Archive, item: CapturedArray, check: Check, progress: _Progress, names: Names
) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Yield the blocks of an array that overlap a complete instruction: (start, stop, values). A chunk that cannot be
    read becomes a finding."""
    for start, stop in _complete_blocks(archive, item):
        try:
            blocks = [(start, stop, archive.read_rows(item.name, start, stop))]
        except ArchiveError:
            blocks = list(_read_chunks(archive, item, start, stop, check, names))
        yield from blocks
        progress.block(item, stop - start)


def _read_chunks(
    archive: Archive, item: CapturedArray, start: int, stop: int, check: Check, names: Names
) -> Iterator[tuple[int, int, NDArray[Any]]]:
    step = int(archive.array(item.name).chunks[0])
    for first in range(start, stop, step):
        last = min(first + step, stop)
        try:
            yield first, last, archive.read_rows(item.name, first, last)
        except ArchiveError as error:
            held = names.instructions(names.overlapping(first, last))
            check.findings.append(f"{error}. It holds data of the instructions {held}")


def _complete_blocks(archive: Archive, item: CapturedArray) -> Iterator[tuple[int, int]]:
    """Yield chunk-aligned blocks of rows that hold at least one row of a complete instruction."""
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
    """Return the bits of the last byte that stand for no neuron."""
    return np.uint8((0xFF << (neurons % 8)) & 0xFF if neurons % 8 else 0)


def _blocks(needed: NDArray[np.bool_], step: int, chunk_bytes: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield runs of needed chunks of `step` rows, limited to `BLOCK_BYTES` and to the axis: (start, stop)."""
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
