"""Check an archive against itself: format, checksums, states, token ids, and rows that nobody wrote.

    masks    format ─▶ states ─▶ rows ─▶ token ids ─▶ masks
    counts   format ─▶ states ─▶ rows ─▶ lengths   ─▶ counts

Where counts are held no token id is kept, so of the text the length of its tokenisation alone can be compared.
Masks and counts are read in blocks, whatever the archive's size; the instruction columns are held. It knows no model:
the tokenizer is a function that the caller gives, and a comparison with a reference implementation is another check
(sparcom_extractor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive, describe_states
from sparcom_data.errors import ArchiveError
from sparcom_data.schema import INSTRUCTION_ARRAYS, TOKEN_CHUNK, State, array_specs

Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]

BLOCK_BYTES = 64 << 20
TEXTS_AT_ONCE = 1024


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


def verify_archive(
    archive: Archive, tokenize: Tokenize | None, report: Callable[[float], None] = lambda _: None
) -> list[Check]:
    """Run all checks.

    Args:
        archive: the archive.
        tokenize: texts to token ids, as the archive's model does it; None leaves that comparison out.
        report: called with the share of the work that is done, 0 to 1.
    """
    checks = [_check_format(archive)]
    if not checks[0].passed:
        return checks  # nothing else can be trusted to run
    checks.append(_check_states(archive))
    counted = archive.granularity == "count"
    checks.append(_check_lengths(archive) if counted else _check_tokens(archive))
    if tokenize is not None:
        checks.append(_check_text_lengths(archive, tokenize) if counted else _check_text(archive, tokenize))
    checks.append(_check_counts(archive, report) if counted else _check_masks(archive, report))
    return checks


def _check_format(archive: Archive) -> Check:
    """Every array of the format is there with its dtype, dimensions and sizes; the instruction columns can be read."""
    check = Check("format")
    specs = array_specs(archive.granularity)
    for spec in specs:
        try:
            array = archive.array(spec.name)
        except ArchiveError as error:
            check.findings.append(str(error))
            continue
        dtype = "string" if str(array.dtype).startswith("StringDType") else str(array.dtype)
        if dtype != spec.dtype:
            check.findings.append(f"{spec.name} must have dtype {spec.dtype}; it has {dtype}")
        if tuple(getattr(array.metadata, "dimension_names", None) or ()) != spec.dimensions:
            check.findings.append(f"{spec.name} must have dimensions {spec.dimensions}")
    if check.passed:
        check.findings.extend(_size_problems(archive))
    if check.passed:
        check.findings.extend(_column_problems(archive))
    check.looked_at = f"{len(specs)} arrays, format {archive.attributes.format_version}"
    return check


def _size_problems(archive: Archive) -> Iterator[str]:
    count = archive.array("instruction/id").shape[0]
    yield from _count_size_problems(archive, count) if archive.granularity == "count" else _mask_size_problems(archive)
    for spec in INSTRUCTION_ARRAYS:
        if archive.array(spec.name).shape[0] != count:
            yield f"{spec.name} must have {count} entries; it has {archive.array(spec.name).shape[0]}"


def _count_size_problems(archive: Archive, instructions: int) -> Iterator[str]:
    model, counts = archive.attributes.model, archive.array("neuron/count")
    expected = (instructions, len(model.layer_ids), model.neurons)
    if tuple(counts.shape) != expected:
        yield f"neuron/count must have shape {expected}; it has {tuple(counts.shape)}"


def _mask_size_problems(archive: Archive) -> Iterator[str]:
    model, masks = archive.attributes.model, archive.array("neuron/active")
    expected = (archive.tokens, len(model.layer_ids), -(-model.neurons // 8))
    if tuple(masks.shape) != expected:
        yield f"neuron/active must have shape {expected}; it has {tuple(masks.shape)}"
    if masks.attrs.get("size") != model.neurons:
        yield f"neuron/active must carry size {model.neurons}; it carries {masks.attrs.get('size')}"
    if (positions := archive.array("token/position").shape[0]) != archive.tokens:
        yield f"token/position must have {archive.tokens} entries; it has {positions}"


def _column_problems(archive: Archive) -> Iterator[str]:
    for spec in INSTRUCTION_ARRAYS:
        try:
            archive.column(spec.name.removeprefix("instruction/"))
        except ArchiveError as error:
            yield str(error)


def _check_states(archive: Archive) -> Check:
    """States are known ones, rows of complete instructions lie within the axis, where there is one, and apart."""
    check = Check("states")
    table = archive.instructions
    errors = archive.strings("error")
    if len(set(table.id)) != len(table):
        check.findings.append("instruction ids must be unique; some occur more than once")
    if unknown := sorted(set(table.state.tolist()) - set(State)):
        check.findings.append(f"states must be 0 to 3; found {unknown}")
        return check
    start, stop = table.token_start, table.token_start + table.token_length
    order = table.complete[np.argsort(start[table.complete], kind="stable")]
    tokens = int(stop.max(initial=0)) if archive.granularity == "count" else archive.tokens
    for index in order[(stop[order] > tokens) | (start[order] < 0)]:
        check.findings.append(f"instruction {table.id[index]!r}: its rows end past the token axis")
    for before, after in pairwise(order):
        if stop[before] > start[after]:
            check.findings.append(f"instructions {table.id[before]!r} and {table.id[after]!r} share rows")
    for index in np.flatnonzero(table.state == State.FAILED):
        if not errors[index]:
            check.findings.append(f"instruction {table.id[index]!r} failed without a reason")
    pending = int((table.state == State.PENDING).sum())
    if archive.attributes.state == "complete" and pending:
        check.findings.append(f"a complete archive has no pending instruction; this one has {pending}")
    states = ", ".join(f"{count} {name}" for name, count in describe_states(table.state).items() if count)
    check.looked_at = f"{len(table)} instructions: {states}; archive {archive.attributes.state}"
    return check


def _check_tokens(archive: Archive) -> Check:
    """Every row of a complete instruction was written, none is missing, and its positions run on."""
    check = Check("rows")
    table = archive.instructions
    captured = archive.attributes.capture.positions
    window = _TokenWindow(archive)
    rows = 0
    for index in table.complete:
        start, length = int(table.token_start[index]), int(table.token_length[index])
        try:
            ids, positions = window.read(start, start + length)
        except (ArchiveError, IndexError) as error:
            check.findings.append(f"instruction {table.id[index]!r}: {error}")
            continue
        rows += length
        check.findings.extend(_length_problems(archive, int(index)))
        if unwritten := int((ids < 0).sum()):
            check.findings.append(
                f"instruction {table.id[index]!r}: {unwritten} of its {length} rows were never written"
            )
        first = int(table.prompt_length[index]) if captured == "response" else 0
        if not np.array_equal(positions, first + np.arange(length)):
            check.findings.append(f"instruction {table.id[index]!r}: positions do not run from {first} on")
    check.looked_at = f"{rows:,} rows of {len(table.complete)} complete instructions"
    return check


def _length_problems(archive: Archive, index: int) -> Iterator[str]:
    """Why an instruction cannot have as many rows as it says, from its prompt and what was reserved."""
    table, capture = archive.instructions, archive.attributes.capture
    length, prompt = int(table.token_length[index]), int(table.prompt_length[index])
    least = 0 if capture.positions == "response" else prompt
    if length < least or (capture.positions == "prompt" and length > prompt):
        yield f"instruction {table.id[index]!r}: {length} rows cannot hold its {prompt} prompt tokens"
    elif length > least + capture.max_tokens:
        yield f"instruction {table.id[index]!r}: {length} rows are more than the {least + capture.max_tokens} reserved"


def _check_lengths(archive: Archive) -> Check:
    """Every complete instruction counted as many rows as it can have; which tokens they were is not kept."""
    check = Check("rows")
    complete = archive.instructions.complete
    for index in complete:
        check.findings.extend(_length_problems(archive, int(index)))
    rows = int(archive.instructions.token_length[complete].sum(dtype=np.int64))
    check.looked_at = f"{rows:,} rows counted of {len(complete)} complete instructions"
    return check


class _TokenWindow:
    """Token rows read a window at a time, for readers that ask for one instruction after the other."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._start, self._stop = 0, 0
        self._ids = self._positions = np.zeros(0, dtype=np.int32)

    def read(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids and positions of rows [start, stop)."""
        if start == stop:  # no rows: their chunk need not exist
            return self._ids[:0], self._positions[:0]
        if not self._start <= start <= stop <= self._stop:
            border = -(-stop // TOKEN_CHUNK) * TOKEN_CHUNK  # chunks past it need not exist either
            self._start, self._stop = start, min(border, self._archive.tokens)
            self._ids, self._positions = self._archive.read_tokens(self._start, self._stop)
        rows = slice(start - self._start, stop - self._start)
        return self._ids[rows], self._positions[rows]


def _check_text(archive: Archive, tokenize: Tokenize) -> Check:
    """Captured token ids of prompts are the tokenisation of `text`."""
    check = Check("token ids")
    table = archive.instructions
    if archive.attributes.capture.positions == "response":
        check.looked_at = "no prompt rows in this archive"
        return check
    window = _TokenWindow(archive)
    for index, expected in _tokenised(archive, tokenize, check):
        start, length = int(table.token_start[index]), int(table.prompt_length[index])
        try:
            ids, _ = window.read(start, start + length)
        except (ArchiveError, IndexError) as error:
            check.findings.append(f"instruction {table.id[index]!r}: {error}")
            continue
        if not np.array_equal(ids, np.asarray(expected, dtype=np.int32)):
            check.findings.append(
                f"instruction {table.id[index]!r}: captured token ids are not the tokenisation of its text"
            )
    return check


def _check_text_lengths(archive: Archive, tokenize: Tokenize) -> Check:
    """Prompts are as long as the tokenisation of `text`: what can still be compared where no token id is kept."""
    check = Check("lengths")
    table = archive.instructions
    for index, expected in _tokenised(archive, tokenize, check):
        if len(expected) != (length := int(table.prompt_length[index])):
            check.findings.append(
                f"instruction {table.id[index]!r}: its prompt has {length} tokens and its text {len(expected)}"
            )
    return check


def _tokenised(archive: Archive, tokenize: Tokenize, check: Check) -> Iterator[tuple[int, Sequence[int]]]:
    """Complete instructions that have a text, with its tokenisation; the check is told how many were looked at."""
    texts, complete = archive.strings("text"), archive.instructions.complete
    with_text = [int(index) for index in complete if texts[index]]
    for first in range(0, len(with_text), TEXTS_AT_ONCE):
        batch = with_text[first : first + TEXTS_AT_ONCE]
        yield from zip(batch, tokenize([texts[index] for index in batch]), strict=True)
    check.looked_at = f"{len(with_text)} texts tokenised again"
    if left := len(complete) - len(with_text):
        check.looked_at += f"; {left} instructions were given as token ids and have no text to compare"


def _check_masks(archive: Archive, report: Callable[[float], None]) -> Check:
    """Every chunk under complete instructions is there and whole; spare bits are 0."""
    check = Check("masks")
    spare = _spare_bits(archive.neurons)
    rows_done, total = 0, max(1, archive.tokens)
    for start, stop in _complete_blocks(archive):
        try:
            block = archive.read_active(start, stop)
        except ArchiveError as error:
            if str(error) not in check.findings:
                check.findings.append(str(error))
            continue
        if spare and (block[..., -1] & spare).any():
            check.findings.append(
                f"spare bits past neuron {archive.neurons - 1} must be 0; some in rows {start} to {stop} are not"
            )
        rows_done += stop - start
        report(stop / total)
    report(1.0)
    size = rows_done * archive.layers * archive.neuron_bytes
    check.looked_at = f"{size / 1e6:,.1f} MB of masks, checksums included"
    return check


def _check_counts(archive: Archive, report: Callable[[float], None]) -> Check:
    """Every chunk under complete instructions is there and whole; no count is above the instruction's rows."""
    check = Check("counts")
    table, done = archive.instructions, 0
    for start, stop in _complete_count_blocks(archive):
        try:
            counts = archive.read_counts(start, stop)
        except ArchiveError as error:
            if str(error) not in check.findings:
                check.findings.append(str(error))
            continue
        largest = counts.reshape(stop - start, -1).max(axis=1, initial=0)
        trusted = table.state[start:stop] == State.COMPLETE
        for place in np.flatnonzero(trusted & (largest > table.token_length[start:stop])):
            check.findings.append(
                f"instruction {table.id[start + place]!r}: a count of {largest[place]} is more than its "
                f"{table.token_length[start + place]} rows"
            )
        done += counts.nbytes
        report(stop / len(table))
    report(1.0)
    check.looked_at = f"{done / 1e6:,.1f} MB of counts, checksums included"
    return check


def _complete_count_blocks(archive: Archive) -> Iterator[tuple[int, int]]:
    """Chunk-aligned blocks of instructions that hold at least one complete instruction."""
    step, table = archive.chunk_instructions, archive.instructions
    needed: NDArray[np.bool_] = np.zeros(-(-len(table) // step), dtype=bool)
    needed[table.complete // step] = True
    return _blocks(needed, step, step * archive.layers * archive.neurons * 4, len(table))


def _spare_bits(neurons: int) -> np.uint8:
    """The bits of the last byte that stand for no neuron."""
    return np.uint8((0xFF << (neurons % 8)) & 0xFF if neurons % 8 else 0)


def _complete_blocks(archive: Archive) -> Iterator[tuple[int, int]]:
    """Chunk-aligned blocks of rows that hold at least one complete instruction's row."""
    table = archive.instructions
    step = archive.chunk_tokens
    needed: NDArray[np.bool_] = np.zeros(-(-archive.tokens // step), dtype=bool)
    for index in table.complete:
        start, length = int(table.token_start[index]), int(table.token_length[index])
        if length and start + length <= archive.tokens:
            needed[start // step : -(-(start + length) // step)] = True
    return _blocks(needed, step, step * archive.layers * archive.neuron_bytes, archive.tokens)


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
