"""Where the packed sets of all instructions are kept: in memory, or past some size in a file without a name.

2.03 million neurons of experts are 254 kB an instruction: in memory they would grow with the instructions. They are
written once, in any order, and read in blocks of rows. The file is read and written by offsets, not mapped: pages of
a map count as memory of the process as long as it does not give them back. It has no name from the start, so nothing is
left behind however the process ends. No other process could find the file by its number, and a copy would outlive it:
sets in a file refuse to be pickled and copied.
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

MEMORY_BYTES = 16 << 20  # sets that take no more are kept in memory


class Bitsets:
    """n sets of equal width, uint64 (n, word), one bit an element; all empty at first. `sets[k] = words` writes one."""

    def __init__(self, count: int, words: int, folder: Path | None = None, memory_bytes: int | None = None) -> None:
        """
        Args:
            folder: where the file lies, if there is one; the system's folder for temporary files without it.
            memory_bytes: sets that together take more lie in a file.
        """
        self.shape = (count, words)
        self._folder = folder
        self._row_bytes = 8 * words
        limit = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._held: NDArray[np.uint64] | None = None
        if count * self._row_bytes <= limit:
            self._held = np.zeros(self.shape, dtype=np.uint64)
            return
        self._file = _open_file(folder, count * self._row_bytes)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        """What pickle, copy and a spawned process take: everything, of sets in memory alone.

        Raises:
            TypeError: the sets lie in a file.
        """
        if self._held is None:
            raise TypeError(
                f"packed sets can be pickled or copied only up to {MEMORY_BYTES >> 20} MiB; these take "
                f"{len(self) * self._row_bytes / 2**20:,.1f} MiB and lie in a temporary file of this process. Share "
                "this object, send the arrays that rows(first, last) returns, or open the archive again where they "
                "are needed"
            )
        return self.__dict__

    def __setitem__(self, k: int, words: NDArray[np.uint64]) -> None:
        if words.shape != self.shape[1:] or words.dtype != np.uint64 or not 0 <= k < len(self):
            raise ValueError(f"set {k} must be uint64 {self.shape[1:]}, k below {len(self)}; got {words.shape}")
        if self._held is not None:
            self._held[k] = words
            return
        left, at = np.ascontiguousarray(words).data.cast("B"), k * self._row_bytes
        try:
            while left:
                written = os.pwrite(self._file, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            raise _no_room(error) from error

    def take_rows(self, places: NDArray[np.intp]) -> Bitsets:
        """Return a copy of the sets at these places, in this order."""
        taken = Bitsets(len(places), self.shape[1], self._folder)
        for k, place in enumerate(places.tolist()):
            taken[k] = self.rows(place, place + 1)[0]
        return taken

    def rows(self, first: int, last: int) -> NDArray[np.uint64]:
        """Sets first..last: uint64 (last - first, word), a copy where they lie in a file."""
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"sets [{first}, {last}) are not within {len(self)}")
        if self._held is not None:
            return self._held[first:last]
        rows = np.empty((last - first, self.shape[1]), dtype=np.uint64)
        if not rows.size:
            return rows
        left, at = rows.reshape(-1).data.cast("B"), first * self._row_bytes
        while left:
            got = os.preadv(self._file, [left], at)
            if not got:
                raise StorageError(f"the file of packed sets ends after {at} bytes; something cut it. Run it again")
            left, at = left[got:], at + got
        return rows


def _open_file(folder: Path | None, size: int) -> int:
    """A file of zeros without a name; its descriptor."""
    where = Path(tempfile.gettempdir()) if folder is None else folder
    try:
        descriptor, name = tempfile.mkstemp(prefix=".sparcom-sets-", dir=where)
    except OSError as error:
        raise StorageError(f"packed sets need a file in {where}: {error}. Set TMPDIR, or another output") from error
    Path(name).unlink()
    try:
        os.truncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise _no_room(error) from error
    return descriptor


def _no_room(error: OSError) -> StorageError:
    return StorageError(f"packed sets could not be written to a temporary file: {error}. Make room, or set TMPDIR")
