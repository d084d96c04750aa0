"""Check that an archive is consistent: format, checksums, states, token ids and unwritten rows.

    masks    format ─▶ states ─▶ rows ─▶ token ids ─▶ origins ─▶ masks  ─▶ routes, if the model has a router
    counts   format ─▶ states ─▶ rows ─▶ lengths   ─▶ origins ─▶ counts

Only complete instructions are checked; `coverage` reports their number. `values` checks masks, routes and counts.

Archives of counts store no token ids, so only the length of a text's tokenization can be compared. The instruction
columns are held in memory; values are read in blocks. No model is needed: the caller passes the tokenizer as a
function. `sparcom_verification` compares archives with a reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.describe import describe_states
from sparcom_data.errors import ArchiveError
from sparcom_data.schema import INSTRUCTION_ARRAYS, TOKEN_CHUNK, CapturedArray, State, array_specs
from sparcom_data.verify.origins import check_origins
from sparcom_data.verify.values import Check, check_values

__all__ = ["Check", "Coverage", "Tokenize", "coverage", "verify_archive"]

Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]

TEXTS_AT_ONCE = 1024


def verify_archive(
    archive: Archive, tokenize: Tokenize | None, report: Callable[[float], None] = lambda _: None
) -> list[Check]:
    """Run all checks.

    Args:
        archive: the archive.
        tokenize: maps texts to token ids as the archive's model does; None skips that comparison.
        report: called with the completed fraction of the work, 0 to 1.

    Raises:
        ArchiveError, StorageError: the archive was removed or replaced meanwhile; see `Archive.require_same`.
    """
    checks = [_check_format(archive)]
    if not checks[0].passed:
        return checks  # the other checks rely on the format
    checks.append(_check_states(archive))
    counted = archive.granularity == "count"
    checks.append(_check_lengths(archive) if counted else _check_tokens(archive))
    if tokenize is not None:
        checks.append(_check_text_lengths(archive, tokenize) if counted else _check_text(archive, tokenize))
    if archive.knows_origins:
        checks.append(check_origins(archive))
    checks += check_values(archive, report)
    archive.require_same()  # over HTTP, reads check this only every few seconds
    return checks


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of the checks: instructions per state, and whether the archive is still open."""

    complete: int
    pending: int
    failed: int
    cancelled: int
    open: bool

    @property
    def total(self) -> int:
        """Number of all instructions."""
        return self.complete + self.pending + self.failed + self.cancelled

    @property
    def finished(self) -> bool:
        """Whether some instructions are complete and none are outstanding."""
        return bool(self.complete) and not self.pending and not self.open

    def sentence(self) -> str:
        """Return a sentence on the unchecked instructions, empty if the archive and all instructions are complete."""
        others = {"pending": self.pending, "failed": self.failed, "cancelled": self.cancelled}
        rest = [f"{count:,} {state}" for state, count in others.items() if count]
        if not self.complete:
            first, *further = rest or ["0 complete"]
            count, state = first.split()
            shown = ", ".join([f"{count} of {self.total:,} instructions are {state}", *further])
            return f"{shown}: nothing was checked{self._remedy()}"
        if self.open and not self.pending:
            rest.append("and the archive is still open")
        if not rest:
            return ""
        shown = ", ".join([f"{self.complete:,} of {self.total:,} instructions are complete", *rest])
        return f"{shown}; only complete instructions were checked{self._remedy()}"

    def _remedy(self) -> str:
        if not (self.open and self.pending):
            return ""
        return (
            f". The archive is open: {self.pending:,} of {self.total:,} instructions are pending. If nothing writes it "
            "any more, resume it with `sparcom extract --resume`"
        )


def coverage(archive: Archive) -> Coverage:
    """Return the coverage of `verify_archive` on an archive."""
    states = describe_states(archive.instructions.state)
    return Coverage(**states, open=archive.attributes.state == "open")


def _check_format(archive: Archive) -> Check:
    """Check that every array exists with its dtype, dimensions and sizes, and that instruction columns can be read."""
    check = Check("format")
    specs = array_specs(archive.attributes.model, archive.granularity)
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
    counted = archive.granularity == "count"
    for item in archive.captured:
        yield from _captured_size_problems(archive, item, count if counted else archive.tokens)
    if not counted and (positions := archive.array("token/position").shape[0]) != archive.tokens:
        yield f"token/position must have {archive.tokens} entries; it has {positions}"
    for spec in INSTRUCTION_ARRAYS:
        if archive.array(spec.name).shape[0] != count:
            yield f"{spec.name} must have {count} entries; it has {archive.array(spec.name).shape[0]}"


def _captured_size_problems(archive: Archive, item: CapturedArray, rows: int) -> Iterator[str]:
    array, expected = archive.array(item.name), (rows, *item.row)
    if tuple(array.shape) != expected:
        yield f"{item.name} must have shape {expected}; it has {tuple(array.shape)}"
    if item.packed and array.attrs.get("size") != item.neurons:
        yield f"{item.name} must carry size {item.neurons}; it carries {array.attrs.get('size')}"


def _column_problems(archive: Archive) -> Iterator[str]:
    for spec in INSTRUCTION_ARRAYS:
        try:
            archive.column(spec.name.removeprefix("instruction/"))
        except ArchiveError as error:
            yield str(error)


def _check_states(archive: Archive) -> Check:
    """Check that states are valid, and that rows of complete instructions do not overlap or exceed the token axis."""
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
    """Check that every row of a complete instruction exists and was written, and that positions are consecutive."""
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
        first = int(table.prompt_length[index]) if captured == "response" else 0
        if (unwritten := np.flatnonzero(ids < 0)).size:
            check.findings.append(
                f"instruction {table.id[index]!r}: {len(unwritten)} of its {length} rows were never written; the first "
                f"is token {first + unwritten[0]}"
            )
        if len(positions) != length:
            check.findings.append(f"instruction {table.id[index]!r}: only {len(positions)} of its {length} rows exist")
        elif (wrong := np.flatnonzero(positions != first + np.arange(length))).size:
            check.findings.append(
                f"instruction {table.id[index]!r}: positions must be consecutive from {first}; that of token "
                f"{first + wrong[0]} is {positions[wrong[0]]}"
            )
    check.looked_at = f"{rows:,} rows of {len(table.complete)} complete instructions"
    return check


def _length_problems(archive: Archive, index: int) -> Iterator[str]:
    """Yield a finding if `token_length` does not fit the prompt and the reserved rows."""
    table, capture = archive.instructions, archive.attributes.capture
    length, prompt = int(table.token_length[index]), int(table.prompt_length[index])
    least = 0 if capture.positions == "response" else prompt
    if length < least or (capture.positions == "prompt" and length > prompt):
        yield f"instruction {table.id[index]!r}: {length} rows cannot hold its {prompt} prompt tokens"
    elif length > least + capture.max_tokens:
        yield f"instruction {table.id[index]!r}: {length} rows are more than the {least + capture.max_tokens} reserved"


def _check_lengths(archive: Archive) -> Check:
    """Check that each complete instruction counted a possible number of rows; token ids are not stored."""
    check = Check("rows")
    complete = archive.instructions.complete
    for index in complete:
        check.findings.extend(_length_problems(archive, int(index)))
    rows = int(archive.instructions.token_length[complete].sum(dtype=np.int64))
    check.looked_at = f"{rows:,} rows counted of {len(complete)} complete instructions"
    return check


class _TokenWindow:
    """Reads token rows one window at a time, for callers that read one instruction after the other."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._start, self._stop = 0, 0
        self._ids = self._positions = np.zeros(0, dtype=np.int32)

    def read(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the token ids and positions of rows [start, stop)."""
        if start == stop:  # no rows: their chunk need not exist
            return self._ids[:0], self._positions[:0]
        if not self._start <= start <= stop <= self._stop:
            border = -(-stop // TOKEN_CHUNK) * TOKEN_CHUNK  # later chunks need not exist
            self._start, self._stop = start, min(border, self._archive.tokens)
            self._ids, self._positions = self._archive.read_tokens(self._start, self._stop)
        rows = slice(start - self._start, stop - self._start)
        return self._ids[rows], self._positions[rows]


def _check_text(archive: Archive, tokenize: Tokenize) -> Check:
    """Check that captured token ids of prompts equal the tokenization of `text`."""
    check = Check("token ids")
    table = archive.instructions
    if archive.attributes.capture.positions == "response":
        check.looked_at = "no prompt rows in this archive"
        return check
    window = _TokenWindow(archive)
    for index, expected in _tokenized(archive, tokenize, check):
        start, length = int(table.token_start[index]), int(table.prompt_length[index])
        try:
            ids, _ = window.read(start, start + length)
        except (ArchiveError, IndexError) as error:
            check.findings.append(f"instruction {table.id[index]!r}: {error}")
            continue
        if difference := _first_difference(ids.tolist(), list(expected)):
            check.findings.append(
                f"instruction {table.id[index]!r}: captured token ids are not the tokenization of its text; "
                f"{difference}"
            )
    return check


def _first_difference(captured: list[int], expected: list[int]) -> str:
    """Describe the first difference between two lists of token ids; empty if they are equal."""
    if captured == expected:
        return ""
    shorter = min(len(captured), len(expected))
    token = next((at for at in range(shorter) if captured[at] != expected[at]), None)
    if token is None:
        return f"{len(captured)} tokens were captured and the text has {len(expected)}"
    return f"token {token} is {captured[token]}, and {expected[token]} in the text"


def _check_text_lengths(archive: Archive, tokenize: Tokenize) -> Check:
    """Check that prompts are as long as the tokenization of `text`, the only comparison without token ids."""
    check = Check("lengths")
    table = archive.instructions
    for index, expected in _tokenized(archive, tokenize, check):
        if len(expected) != (length := int(table.prompt_length[index])):
            check.findings.append(
                f"instruction {table.id[index]!r}: its prompt has {length} tokens and its text {len(expected)}"
            )
    return check


def _tokenized(archive: Archive, tokenize: Tokenize, check: Check) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield complete instructions that have a text, with its tokenization; record their number in the check."""
    texts, complete = archive.strings("text"), archive.instructions.complete
    with_text = [int(index) for index in complete if texts[index]]
    for first in range(0, len(with_text), TEXTS_AT_ONCE):
        batch = with_text[first : first + TEXTS_AT_ONCE]
        yield from zip(batch, tokenize([texts[index] for index in batch]), strict=True)
    check.looked_at = f"{len(with_text)} texts tokenized again"
    if left := len(complete) - len(with_text):
        check.looked_at += f"; {left} instructions were given as token ids and have no text to compare"
