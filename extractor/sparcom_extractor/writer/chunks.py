"""Rows in any order, chunks on disk once each.

    put(rows, values) ─▶ open chunks in memory ─▶ settle(rows): none of these will come again
                              │ full                 │ all rows of a chunk settled
                              ▼                      ▼
                                   writer threads: CRC32C, temporary name, sync, rename ─▶ `durable`

Memory is a fixed number of chunk buffers, page-aligned, so that they are written past the page cache. When all are
taken, or `IN_FLIGHT` chunks a thread are on their way, the caller waits for a write. When none is being written, the
chunk that was touched longest ago is written as it is and read back when more of its rows come, so a slow instruction
in an old chunk cannot stop the rest. It does not know instructions.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import DamagedArchiveError
from sparcom_data.storage import aligned_memory, make_folder, shown_path, write_durably
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.writer.encoding import Compressor, EncodingError, decode, encode

ChunkType = Literal["uint8", "uint16", "float32", "uint32"]

IN_FLIGHT = 2  # chunks a thread, being written or next in line; more only takes memory


def buffers_for(requests: int, threads: int) -> int:
    """Buffers with which no chunk is put aside while so many requests grow a row a step, each in a chunk of its own.

    With fewer every row costs a chunk written and one read back: 256 requests over 43 buffers took 8.4 s a step instead
    of 5 ms (DECISIONS.md).
    """
    return requests + IN_FLIGHT * threads + 1


@dataclass(frozen=True, slots=True)
class ChunkTarget:
    """Which chunks a writer owns: those of one array along its first axis, at one place of the others.

    folder: the array's folder. rows: length of the first axis. chunk_shape: (chunk rows, …).
    separator: between the numbers of a chunk's key. dtype: uint8 for masks, uint16 and float32 for routes, uint32 for
    counts; stored little-endian. compressor: None for what comes by the token, "blosc" for counts; the array's metadata
    must say the same. place: the chunk's numbers along the other axes, all 0 where those are not cut.
    fill: the value of rows that nobody put, as in the array's metadata. archive: the one that the folder belongs to;
    a write is refused once it was removed or replaced. None where the folder stands alone.
    """

    folder: Path
    rows: int
    chunk_shape: tuple[int, ...]
    separator: str = "."
    dtype: ChunkType = "uint8"
    compressor: Compressor | None = None
    place: tuple[int, ...] = ()
    fill: float = 0
    archive: PinnedArchive | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(ChunkType):
            raise ValueError(f"a chunk holds {', '.join(get_args(ChunkType))}; got dtype {self.dtype!r}")
        if not self.place:
            object.__setattr__(self, "place", (0,) * (len(self.chunk_shape) - 1))
        if self.compressor not in (None, "blosc"):
            raise ValueError(f'a chunk is stored as it is (None) or by "blosc"; got compressor {self.compressor!r}')

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The type in the file and in memory."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunk_rows(self) -> int:
        """Rows of one chunk."""
        return self.chunk_shape[0]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk in memory."""
        return math.prod(self.chunk_shape) * self.stored_dtype.itemsize

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / self._key(str(chunk))

    def write(self, chunk: int, values: NDArray[Any]) -> None:
        """Write one chunk.

        Raises:
            StorageError: writing failed, or the archive is no longer at its path.
        """
        path = self.path(chunk)
        with self.archive.checked() if self.archive else nullcontext():
            if path.parent != self.folder:
                make_folder(path.parent, within=self.folder)
            write_chunk(path, values, self.compressor)

    def stored_chunks(self) -> set[int]:
        """Chunks whose file is there, from one look at the folder."""
        paths = self.folder.glob(self._key("*"))
        keys = {path: path.relative_to(self.folder).as_posix().split(self.separator)[1] for path in paths}
        return {int(key) for path, key in keys.items() if key.isdecimal() and path == self.path(int(key))}

    def _key(self, chunk: str) -> str:
        return self.separator.join(["c", chunk, *map(str, self.place)])

    def rows_of(self, chunk: int) -> int:
        """Rows of a chunk that lie within the array; the last chunk may be cut."""
        return min(self.chunk_rows, self.rows - chunk * self.chunk_rows)


@dataclass(slots=True)
class _Buffer:
    """Memory of one chunk.

    values: (chunk rows, …). filled: bool (chunk rows,), which rows hold data; `rows` of them do.
    """

    values: NDArray[Any]
    filled: NDArray[np.bool_]
    rows: int = 0

    @classmethod
    def of(cls, target: ChunkTarget) -> _Buffer:
        memory = np.frombuffer(aligned_memory(target.chunk_bytes), dtype=target.stored_dtype)
        return cls(memory.reshape(target.chunk_shape), np.zeros(target.chunk_rows, dtype=np.bool_))

    def put(self, offset: int, values: NDArray[Any]) -> None:
        rows = slice(offset, offset + len(values))
        self.values[rows] = values
        self.rows += len(values) - int(np.count_nonzero(self.filled[rows]))
        self.filled[rows] = True

    def empty(self) -> None:
        self.filled[:] = False
        self.rows = 0

    def clear_holes(self, fill: float) -> None:
        """Rows that nobody put hold the fill value, not what another chunk left here."""
        if not self.filled.all():
            self.values[~self.filled] = fill


class ChunkWriter:
    """Assembles and writes the chunks of one array. Used from one thread; writes on others.

    Memory: `buffers` chunks, of which only those that were ever needed at once are touched; with a compressor also one
    compressed chunk a thread.

    Args:
        target: the array. Chunks that lie in its folder are read back when more of their rows come.
        buffers: chunk buffers, open and being written together.
        threads: writer threads. pool: those of another writer, which closes it; its own where not given.

    Attributes:
        waited_seconds: how long `put` stood still because every buffer was taken.
    """

    def __init__(
        self, target: ChunkTarget, *, buffers: int, threads: int, pool: ThreadPoolExecutor | None = None
    ) -> None:
        if buffers < 1:
            raise ValueError(f"a chunk writer needs at least one buffer; got {buffers}")
        self.backpressure_seconds = 0.0
        self._target = target
        self._dtype = target.stored_dtype
        self._free = [_Buffer.of(target) for _ in range(buffers)]
        self._open: OrderedDict[int, _Buffer] = OrderedDict()
        self._writing: dict[int, tuple[Future[None], _Buffer]] = {}
        self._written: SimpleQueue[int] = SimpleQueue()
        self._stored = target.stored_chunks()
        self._error: BaseException | None = None
        self._settled: dict[int, int] = {}
        self._final = np.zeros(-(-target.rows // target.chunk_rows), dtype=bool)
        self._most_writing = IN_FLIGHT * threads
        self._threads = pool or write_pool(threads)

    def put(self, row: int, values: NDArray[Any]) -> None:
        """Place values (n, …) at rows [row, row + n). Again is harmless: the same rows hold the same values.

        Raises:
            TypeError, ValueError: values of another type or shape, which NumPy would make fit without a word.
        """
        if values.dtype != self._dtype:
            raise TypeError(
                f"rows of {self._target.folder} must be {self._target.dtype}; got {values.dtype}. Cast them"
            )
        if values.shape[1:] != self._target.chunk_shape[1:]:
            raise ValueError(
                f"rows of {self._target.folder} have shape {self._target.chunk_shape[1:]}; got {values.shape[1:]}"
            )
        size, done = self._target.chunk_rows, 0
        while done < len(values):
            chunk, offset = divmod(row + done, size)
            take = min(size - offset, len(values) - done)
            buffer = self._chunk(chunk)
            was_full = buffer.rows == self._target.rows_of(chunk)
            buffer.put(offset, values[done : done + take])
            if not was_full and buffer.rows == self._target.rows_of(chunk):
                self._write(
                    chunk
                )  # nobody has settled it yet: that comes once a second, and the disk would stand still
            done += take

    def nothing(self, rows: int) -> NDArray[Any]:
        """Values of rows that hold nothing, (rows, …)."""
        return np.full((rows, *self._target.chunk_shape[1:]), self._target.fill, self._target.stored_dtype)

    def settle(self, start: int, stop: int) -> None:
        """Rows [start, stop) will not come again; chunks of which that holds for all rows are written."""
        for chunk, rows in self._parts(start, stop):
            self._settled[chunk] = self._settled.get(chunk, 0) + rows
            if self._settled[chunk] == self._target.rows_of(chunk):
                del self._settled[chunk]
                self._final[chunk] = True
                if chunk in self._open:  # otherwise it was written before, or nothing of it ever ran
                    self._write(chunk)

    def durable(self, start: int, stop: int) -> bool:
        """Whether every chunk under rows [start, stop) is on disk with all its rows.

        Raises:
            StorageError: a write failed.
        """
        self._reap()
        return all(self._final[chunk] and chunk not in self._writing for chunk, _ in self._parts(start, stop))

    def flush(self) -> None:
        """Write what is open as it is, settled or not, and wait for it. Nothing may be put afterwards."""
        for chunk in list(self._open):
            self._write(chunk)
        while self._writing:
            self._finish(self._written.get())
        self._final[:] = True

    def close(self) -> None:
        """Give the threads back; what is being written is finished first."""
        self._threads.shutdown(wait=True)

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(chunk, rows of [start, stop) in it)."""
        size = self._target.chunk_rows
        return [
            (chunk, min(stop, (chunk + 1) * size) - max(start, chunk * size))
            for chunk in range(start // size, -(-stop // size))
            if stop > start
        ]

    def _chunk(self, chunk: int) -> _Buffer:
        buffer = self._open.get(chunk)
        if buffer is None:
            buffer = self._load(chunk)
            self._open[chunk] = buffer
        self._open.move_to_end(chunk)
        return buffer

    def _load(self, chunk: int) -> _Buffer:
        """A buffer with what the chunk holds on disk, or with nothing."""
        while chunk in self._writing:
            self._wait_for_one()
        buffer = self._free_buffer()
        buffer.empty()
        if chunk in self._stored:
            target = self._target
            buffer.put(0, read_chunk(target.path(chunk), target.chunk_shape, target.dtype, target.compressor))
        return buffer

    def _free_buffer(self) -> _Buffer:
        self._reap()
        while not self._free:
            if not self._writing:
                self._write(next(iter(self._open)))
            self._wait_for_one()
        return self._free.pop()

    def _write(self, chunk: int) -> None:
        while len(self._writing) >= self._most_writing:
            self._wait_for_one()
        buffer = self._open.pop(chunk)
        buffer.clear_holes(self._target.fill)
        future = self._threads.submit(self._target.write, chunk, buffer.values)
        self._writing[chunk] = (future, buffer)
        future.add_done_callback(lambda _: self._written.put(chunk))

    def _wait_for_one(self) -> None:
        started = time.monotonic()
        chunk = self._written.get()
        self.backpressure_seconds += time.monotonic() - started
        self._finish(chunk)

    def _reap(self) -> None:
        if self._error is not None:
            raise self._error
        while not self._written.empty():
            self._finish(self._written.get())

    def _finish(self, chunk: int) -> None:
        future, buffer = self._writing.pop(chunk)
        self._free.append(buffer)
        self._error = future.exception()
        if self._error is not None:
            raise self._error
        self._stored.add(chunk)


def write_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that write chunks."""
    return ThreadPoolExecutor(max_workers=threads, thread_name_prefix="sparcom-write")


def write_chunk(path: Path, values: NDArray[Any], compressor: Compressor | None = None) -> None:
    """Write one chunk as Zarr's codecs encode it."""
    write_durably(path, encode(values, compressor))


def read_chunk(
    path: Path, shape: tuple[int, ...], dtype: str = "uint8", compressor: Compressor | None = None
) -> NDArray[Any]:
    """Read one chunk back, (chunk rows, …) of the type given.

    Raises:
        DamagedArchiveError: its length or checksum is wrong.
    """
    try:
        return decode(path.read_bytes(), shape, np.dtype(dtype).newbyteorder("<"), compressor)
    except EncodingError as error:
        raise DamagedArchiveError(
            f"chunk {shown_path(path)} must be as it was written; {error}. Remove the archive and run it again"
        ) from error
