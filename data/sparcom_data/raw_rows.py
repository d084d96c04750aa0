"""Fast reads of local arrays with raw-byte chunks, straight into the caller's memory.

    1. raw_rows    decides from the metadata alone whether the fast path applies: chunks of whole rows, in files of a
                   local folder, in native byte order, with or without a CRC32C at their end
    2. read_into   calls `preadv` once per chunk: requested rows go into the caller's memory; the rows around them,
                   which the checksum covers too, go into scratch memory; then it compares the checksum

The fast path never diagnoses. If a chunk is missing, is not a regular file, has the wrong size or fails its checksum,
it returns False. The caller then reads through zarr, which raises the error. So the fast path accepts nothing that
zarr refuses, and all errors come from one function.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from crc32c import crc32c
from numpy.typing import NDArray
from zarr.storage import LocalStore

CRC_BYTES = 4
RAW_KINDS = "iuf"  # dtypes with equal bytes in memory and file, where every bit pattern is a number
_KNOWN_STEPS = (["bytes"], ["bytes", "crc32c"])


@dataclass(frozen=True, slots=True)
class RawRows:
    """Disk layout of an array that the fast path reads. key: maps chunk indices to the file's name below `folder`."""

    folder: Path
    key: Callable[[tuple[int, ...]], str]
    dtype: np.dtype[Any]
    row: tuple[int, ...]
    chunk_rows: int
    checked: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(self.dtype.itemsize) * math.prod(self.row)

    def read_into(self, out: NDArray[Any], start: int) -> bool:
        """Read rows [start, start + len(out)), which must be within the array.

        Args:
            out: this dtype (rows, *row), C-contiguous; undefined contents if the result is False.

        Returns:
            True if every chunk was present with the right size and checksum.
        """
        wanted = out.reshape(-1).view(np.uint8)
        if not len(out):
            return True
        stop, at = start + len(out), 0
        for first in range(start - start % self.chunk_rows, stop, self.chunk_rows):
            before = max(0, start - first)
            rows = min(stop - first, self.chunk_rows) - before
            part = wanted[at : at + rows * self.row_bytes]
            if not self._read_chunk(first // self.chunk_rows, before * self.row_bytes, part):
                return False
            at += len(part)
        return True

    def _read_chunk(self, number: int, offset: int, part: NDArray[np.uint8]) -> bool:
        """Read bytes [offset, offset + len(part)) of a chunk's rows."""
        size = self.chunk_rows * self.row_bytes
        path = self.folder / self.key((number, *(0 for _ in self.row)))
        if not self.checked:
            return _read_file(path, size, offset, [part])
        parts = [np.empty(offset, np.uint8), part, np.empty(size - offset - len(part), np.uint8)]
        checksum = np.empty(CRC_BYTES, np.uint8)
        return _read_file(path, size + CRC_BYTES, 0, [*parts, checksum]) and checksum.tobytes() == _crc32c(parts)


def raw_rows(array: zarr.Array[Any]) -> RawRows | None:
    """Return how to read an array without zarr; None if any of its properties is unknown here."""
    if type(array.store) is not LocalStore or array.metadata.zarr_format != 3 or not hasattr(os, "preadv"):
        return None
    facts, dtype = array.metadata.to_dict(), array.dtype
    steps = [dict(step) for step in facts["codecs"]]  # type: ignore[union-attr,arg-type]
    names = [step.pop("name", None) for step in steps]
    native = {"configuration": {"endian": sys.byteorder}}
    if names not in _KNOWN_STEPS or steps[0] != (native if dtype.itemsize > 1 else {}) or any(steps[1:]):
        return None
    if dtype.kind not in RAW_KINDS or not dtype.isnative or facts.get("storage_transformers"):
        return None
    if facts["chunk_grid"]["name"] != "regular" or not _whole_rows(array):  # type: ignore[index,call-overload]
        return None
    return RawRows(
        folder=array.store.root / array.path,
        key=array.metadata.encode_chunk_key,
        dtype=dtype,
        row=array.shape[1:],
        chunk_rows=array.chunks[0],
        checked=names[-1] == "crc32c",
    )


def _whole_rows(array: zarr.Array[Any]) -> bool:
    """Return whether chunks hold whole rows, and rows have at least one byte."""
    return array.ndim > 0 and array.chunks[1:] == array.shape[1:] and math.prod(array.chunks) > 0


def _crc32c(parts: list[NDArray[np.uint8]]) -> bytes:
    """Return the checksum of the concatenated parts, as Zarr's `crc32c` codec stores it."""
    checksum = 0
    for part in parts:
        checksum = crc32c(part.data, checksum)
    return checksum.to_bytes(CRC_BYTES, "little")


def _read_file(path: Path, size: int, offset: int, parts: list[NDArray[np.uint8]]) -> bool:
    """Fill the parts from the offset on; return False if no regular file of that size exists or the read fails."""
    try:
        # O_NONBLOCK: opening a pipe in a chunk's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        return stat.S_ISREG(status.st_mode) and status.st_size == size and _fill(descriptor, offset, parts)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _fill(descriptor: int, offset: int, parts: list[NDArray[np.uint8]]) -> bool:
    """Read until every part is full; return False if the file ends first. One call may return less than asked."""
    left = [part.data for part in parts if len(part)]
    while left:
        got = os.preadv(descriptor, left, offset)
        if not got:
            return False
        offset += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]
    return True
