"""Packed sets of all instructions, in memory or, above 8 MiB, in an unnamed temporary file.

2.03 million expert neurons take 254 kB per instruction. The file is read and written by offset, not mapped, because
mapped pages count toward the memory of the process. It is unlinked at once, so no crash leaves it behind. Sets in a
file cannot be pickled or copied, because another process could not open the file.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import StorageError

MEMORY_BYTES = 8 << 20  # larger sets are kept in a file


class Bitsets:
    """n sets of equal width, uint64 (n, word), one bit per element, initially empty. `sets[k] = words` writes one.

    Args:
        folder: folder of the file (default: the system's temporary folder).
        memory_bytes: size above which sets are in a file (default: `MEMORY_BYTES`).
    """

    def __init__(self, count: int, words: int, folder: Path | None = None, memory_bytes: int | None = None) -> None:
        self.shape, self._folder, self._row_bytes = (count, words), folder, 8 * words
        self._held: NDArray[np.uint64] | None = None
        if count * self._row_bytes <= (MEMORY_BYTES if memory_bytes is None else memory_bytes):
            self._held = np.zeros(self.shape, dtype=np.uint64)
        else:
            self._file = self._open_file(folder or tempfile.gettempdir())

    def _open_file(self, where: Path | str) -> int:
        """Return the descriptor of an unnamed file of zeros, which is closed with this object."""
        try:
            file = tempfile.TemporaryFile(dir=where, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StorageError(f"packed sets need a file in {where}: {error}. Set TMPDIR or another output") from error
        weakref.finalize(self, file.close)
        try:
            file.truncate(len(self) * self._row_bytes)
        except OSError as error:
            raise _no_room(error) from error
        return file.fileno()

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle and copy; raise TypeError if the sets are in a file."""
        if self._held is None:
            raise TypeError(
                f"packed sets can be pickled or copied only up to {MEMORY_BYTES >> 20} MiB; these take "
                f"{len(self) * self._row_bytes / 2**20:,.1f} MiB and are in a temporary file of this process. Share "
                "this object, send the arrays from rows(first, last), or open the archive again in the other process"
            )
        return self.__dict__

    def __setitem__(self, k: int, words: NDArray[np.uint64]) -> None:
        if words.shape != self.shape[1:] or words.dtype != np.uint64 or not 0 <= k < len(self):
            raise ValueError(f"set {k} must be uint64 {self.shape[1:]}, k below {len(self)}; got {words.shape}")
        if self._held is not None:
            self._held[k] = words
            return
        left, offset = np.ascontiguousarray(words).data.cast("B"), k * self._row_bytes
        try:
            while left:
                written = os.pwrite(self._file, left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise _no_room(error) from error

    def take_rows(self, indices: NDArray[np.intp]) -> Bitsets:
        """Return a copy of the sets at these indices, in this order."""
        taken = Bitsets(len(indices), self.shape[1], self._folder)
        for k, index in enumerate(indices.tolist()):
            taken[k] = self.rows(index, index + 1)[0]
        return taken

    def rows(self, first: int, last: int) -> NDArray[np.uint64]:
        """Return sets first..last: uint64 (last - first, word), a view in memory, a copy from a file."""
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"sets [{first}, {last}) are not within {len(self)}")
        if self._held is not None:
            return self._held[first:last]
        rows = np.empty((last - first, self.shape[1]), dtype=np.uint64)
        left, offset = rows.view(np.uint8).reshape(-1).data, first * self._row_bytes
        while left:
            count = os.preadv(self._file, [left], offset)
            if not count:
                raise StorageError(
                    f"the temporary file of packed sets ends after {offset} bytes; another program truncated it. "
                    "Run the analysis again"
                )
            left, offset = left[count:], offset + count
        return rows


def _no_room(error: OSError) -> StorageError:
    return StorageError(f"packed sets could not be written to a temporary file: {error}. Free space, or set TMPDIR")
