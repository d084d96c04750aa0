"""Collect rows that arrive in any order and write each chunk once.

    write_rows ─▶ open chunks in memory      mark_final: these rows will not come again
                    │ all rows written          │ all rows of a chunk final
                    ▼                           ▼
                  pool: encode, write to a temporary name, sync, rename ─▶ is_durable

Memory is a fixed number of chunk buffers, page-aligned so that writes bypass the page cache. If all are taken, or
`IN_FLIGHT` chunks per thread are being written, the caller waits for a write. If none is being written, the least
recently used chunk is written as it is, and read back when more of its rows come. So a slow instruction in an old chunk
cannot block the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.storage import aligned_memory, write_durably
from sparcom_extractor.writer.targets import ChunkTarget, WriteFile

IN_FLIGHT = 2  # chunks per thread, being written or next in line; more would only take memory


def buffers_for(requests: int, threads: int) -> int:
    """Return the number of buffers with which each request can fill its own chunk, one row per step.
    With fewer, every row costs a chunk write and a chunk read: with 43, 256 requests took 8.4 s per step, not 5 ms."""
    return requests + IN_FLIGHT * threads + 1


class ChunkWriter:
    """Collects and writes the chunks of one target. Call it from one thread; writes run on the threads of `pool`.

    target: its chunks on disk are kept, and read back if more of their rows come. threads: number of threads of `pool`.
    buffers: number of chunks in memory, open or being written; touched only as needed. Compression takes one more
    chunk per thread. write: writes one file durably; `write_durably` if None.
    """

    def __init__(
        self, target: ChunkTarget, pool: ThreadPoolExecutor, *, buffers: int, threads: int, write: WriteFile | None
    ) -> None:
        if buffers < 1:
            raise ValueError(f"a chunk writer needs at least one buffer; got {buffers}")
        self._target = target
        self._pool = pool
        self._write_file = write or write_durably
        self._max_in_flight = IN_FLIGHT * threads
        memory = (aligned_memory(target.chunk_bytes) for _ in range(buffers))
        self._free = [np.frombuffer(part, dtype=target.dtype).reshape(target.chunk_shape) for part in memory]
        # By chunk, least recently used first: values (chunk rows, …), and which rows hold data, bool (chunk rows,).
        self._open: OrderedDict[int, tuple[NDArray[Any], NDArray[np.bool_]]] = OrderedDict()
        self._writing: dict[int, tuple[Future[None], NDArray[Any]]] = {}
        self._written: SimpleQueue[int] = SimpleQueue()
        self._stored = target.stored_chunks()
        self._error: BaseException | None = None
        starts = np.arange(0, target.rows, target.chunk_shape[0])
        self._rows = np.minimum(target.chunk_shape[0], target.rows - starts)  # per chunk; the last may have fewer
        self._not_final = self._rows.copy()

    def write_rows(self, start: int, values: NDArray[Any]) -> None:
        """Write values (n, …) to rows [start, start + n). The same rows may come again with the same values.
        Raises TypeError or ValueError for another dtype or shape, which NumPy would convert silently. Raises the error
        of an earlier write."""
        target = self._target
        if values.dtype != target.dtype:
            raise TypeError(f"rows of {target.folder} must be {target.dtype}; got {values.dtype}. Cast them")
        if values.shape[1:] != target.chunk_shape[1:]:
            raise ValueError(f"rows of {target.folder} have shape {target.chunk_shape[1:]}; got {values.shape[1:]}")
        for chunk, rows in self._split_rows(start, start + len(values)):
            buffer, filled = self._open_chunk(chunk)
            first = chunk * target.chunk_shape[0]
            new = not filled[rows].all()
            buffer[rows] = values[first + rows.start - start : first + rows.stop - start]
            filled[rows] = True
            if new and filled[: self._rows[chunk]].all():
                self._start_write(chunk)  # `mark_final` comes once per second; waiting for it would idle the disk

    def mark_final(self, start: int, stop: int) -> None:
        """Declare, once, that rows [start, stop) will not come again. Chunks with all rows final are written."""
        for chunk, rows in self._split_rows(start, stop):
            self._not_final[chunk] -= rows.stop - rows.start
            if not self._not_final[chunk] and chunk in self._open:
                self._start_write(chunk)

    def is_durable(self, start: int, stop: int) -> bool:
        """Return whether all chunks of rows [start, stop) are on disk and final. Raises the error of a failed write."""
        self._collect_writes()
        chunks = (chunk for chunk, _ in self._split_rows(start, stop))
        return all(not self._not_final[chunk] and chunk not in self._writing for chunk in chunks)

    def flush_chunks(self) -> None:
        """Write all open chunks as they are and wait. No rows may be written afterwards."""
        for chunk in list(self._open):
            self._start_write(chunk)
        while self._writing:
            self._collect_writes(wait=True)
        self._not_final[:] = 0

    def _split_rows(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Yield each chunk that holds some of rows [start, stop), and the slice of these rows within the chunk."""
        size = self._target.chunk_shape[0]
        for chunk in range(start // size, -(-stop // size) if stop > start else 0):
            yield chunk, slice(max(start - chunk * size, 0), min(stop - chunk * size, size))

    def _open_chunk(self, chunk: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return an open chunk, with its rows from disk if it was written before."""
        if chunk not in self._open:
            self._collect_writes()
            while chunk in self._writing or not self._free:
                if not self._writing:
                    self._start_write(next(iter(self._open)))
                self._collect_writes(wait=True)
            buffer, stored = self._free.pop(), chunk in self._stored
            if stored:
                buffer[:] = self._target.read_chunk(chunk)
            self._open[chunk] = buffer, np.full(len(buffer), stored)
        self._open.move_to_end(chunk)
        return self._open[chunk]

    def _start_write(self, chunk: int) -> None:
        while len(self._writing) >= self._max_in_flight:
            self._collect_writes(wait=True)
        buffer, filled = self._open.pop(chunk)
        buffer[~filled] = self._target.fill  # overwrites the rows of an earlier chunk
        future = self._pool.submit(self._target.write_chunk, chunk, buffer, self._write_file)
        self._writing[chunk] = (future, buffer)
        future.add_done_callback(lambda _: self._written.put(chunk))

    def _collect_writes(self, *, wait: bool = False) -> None:
        """Take back buffers of finished writes; wait for one if `wait`. Every call after an error raises the first."""
        while wait or not self._written.empty():
            wait = False
            chunk = self._written.get()
            future, buffer = self._writing.pop(chunk)
            self._free.append(buffer)
            self._stored.add(chunk)
            self._error = self._error or future.exception()
        if self._error is not None:
            raise self._error
