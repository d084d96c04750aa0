"""Collect rows that arrive in any order and write each chunk once.

    write_rows ─▶ open chunks in memory      mark_final: these rows will not come again
                    │ all rows written          │ all rows of a chunk final
                    ▼                           ▼
                  pool: encode, write to a temporary name, sync, rename ─▶ take_durable

A call takes all rows of a step. It costs a fixed number of array operations, one copy without the interpreter lock,
and a few Python calls per chunk that opens or closes.

Memory is a fixed number of chunk buffers, page-aligned so that writes bypass the page cache. If all are taken, or
`IN_FLIGHT` chunks per thread are being written, the caller waits for a write. If none is being written, the least
recently used chunk is written as it is, and read back when more of its rows come. So a slow instruction in an old chunk
cannot block the others.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.storage import DIRECT_BLOCK, aligned_memory, write_durably
from sparcom_extractor.writer.settled import NOTHING_SETTLED, Settled
from sparcom_extractor.writer.targets import ChunkTarget, WriteFile

IN_FLIGHT = 2  # chunks per thread, being written or next in line; more would only take memory
NONE = -1


def buffers_for(requests: int, threads: int) -> int:
    """Return the number of buffers with which no chunk is written before its time, one row per request and step.

    A request grows within one chunk. A second one stays open if it holds the end of this request and the start of the
    next: it is full only when both are. With one buffer per request, 256 responses of 192 tokens wrote every chunk
    twice; with 43 in all, a step took 8.4 s, not 5 ms.
    """
    return 2 * requests + IN_FLIGHT * threads + 1


class ChunkWriter:
    """Collects and writes the chunks of one target. Call it from one thread; writes run on the threads of `pool`.

    target: its chunks. threads: number of threads of `pool`.
    buffers: number of chunks in memory, open or being written; touched only as needed. Compressed chunks take one more
    per thread. write: writes one file durably; `write_durably` if None. settled: rows that will not come: those kept
    stay as they are on disk; all others there, of an interrupted session, count as not written.
    read_backs: number of chunks that were read back, because they had to be written before they were full.
    written_bytes: bytes of all writes that have ended.
    """

    def __init__(
        self,
        target: ChunkTarget,
        pool: ThreadPoolExecutor,
        *,
        buffers: int,
        threads: int,
        write: WriteFile | None,
        settled: Settled = NOTHING_SETTLED,
    ) -> None:
        if buffers < 1:
            raise ValueError(f"a chunk writer needs at least one buffer; got {buffers}")
        self._target = target
        self._pool = pool
        self._write_file = write or write_durably
        self._max_in_flight = IN_FLIGHT * threads
        starts = np.arange(0, target.rows, target.chunk_shape[0])
        self._rows = np.minimum(target.chunk_shape[0], target.rows - starts)  # per chunk; the last may be shorter
        self._not_final = self._rows.copy()
        self._durable = np.zeros(len(self._rows), dtype=np.bool_)
        self._stored = self._durable.copy()  # by this writer
        self._settled = settled
        for start, stop in settled.final.tolist():
            for chunk in self._chunks(start, stop):
                self._not_final[chunk] -= self._overlap(chunk, start, stop)
        self._durable[self._not_final == 0] = True
        self._stale = self._durable.copy()  # on disk, with rows of an interrupted session
        self._stale[list(target.stored_chunks())] = True
        self._stale &= self._not_final > 0
        self._buffer = np.full(len(self._rows), NONE, dtype=np.int64)  # per chunk, if open
        stride = -(-target.chunk_bytes // DIRECT_BLOCK) * DIRECT_BLOCK
        memory = aligned_memory(buffers * stride)
        strides = np.ndarray(target.chunk_shape, target.dtype, memory).strides
        self._values: NDArray[Any] = np.ndarray(  # (buffer, chunk row, …), each buffer on a page of its own
            (buffers, *target.chunk_shape), target.dtype, memory, strides=(stride, *strides)
        )
        self._filled = np.zeros((buffers, target.chunk_shape[0]), dtype=np.bool_)  # which rows hold data
        self._missing = np.zeros(buffers, dtype=np.int64)  # rows without
        self._chunk = np.full(buffers, NONE, dtype=np.int64)  # per buffer, if open
        self._used = np.zeros(buffers, dtype=np.int64)  # number of the last call that used it
        self._calls = 0
        self._free = list(range(buffers))
        self._writing: dict[int, tuple[Future[int], int]] = {}
        self._written: SimpleQueue[int] = SimpleQueue()
        self._new_durable: list[int] = []
        self._error: BaseException | None = None
        self.read_backs = self.written_bytes = 0

    def write_rows(self, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Write values (n, …) to rows int64 (n,), no row twice. The same rows may come again with the same values.
        Raises TypeError or ValueError for another dtype or shape, which NumPy would convert silently, and the error of
        an earlier write."""
        target = self._target
        if values.dtype != target.dtype:
            raise TypeError(f"rows of {target.folder} must be {target.dtype}; got {values.dtype}. Cast them")
        if values.shape[1:] != target.chunk_shape[1:]:
            raise ValueError(f"rows of {target.folder} have shape {target.chunk_shape[1:]}; got {values.shape[1:]}")
        chunks, within = np.divmod(rows, target.chunk_shape[0])
        needed, which = np.unique(chunks, return_inverse=True)
        for first in range(0, len(needed), len(self._chunk)):  # as many at a time as there are buffers
            batch = needed[first : first + len(self._chunk)]
            buffers = self._open_chunks(batch)
            own: Any = slice(None) if len(batch) == len(needed) else (which >= first) & (which < first + len(batch))
            buffer, place = buffers[which[own] - first], within[own]
            new = np.bincount(buffer[~self._filled[buffer, place]], minlength=len(self._chunk))[buffers]
            self._values[buffer, place] = values[own]
            self._filled[buffer, place] = True
            self._missing[buffers] -= new
            # Full chunks are written before they are final: `mark_final` comes once per second, the disk would idle.
            for chunk in batch[(new > 0) & (self._missing[buffers] <= 0)].tolist():
                self._start_write(chunk)

    def mark_final(self, start: int, stop: int) -> None:
        """Promise, once, that rows [start, stop) will not come again. Chunks with all rows final are written."""
        for chunk in self._chunks(start, stop):
            self._not_final[chunk] -= self._overlap(chunk, start, stop)
            if self._not_final[chunk]:
                continue
            if self._stale[chunk] and self._buffer[chunk] == NONE:
                self._open_chunk(chunk)
            if self._buffer[chunk] != NONE:
                self._start_write(chunk)
            elif chunk not in self._writing:
                self._report_durable(chunk)

    def not_durable(self, start: int, stop: int) -> list[int]:
        """Return the chunks of rows [start, stop) that `take_durable` has still to report."""
        return [chunk for chunk in self._chunks(start, stop) if not self._durable[chunk]]

    def take_durable(self) -> list[int]:
        """Return the chunks that became durable since the last call, each once. Raises the error of a failed write."""
        self._collect_writes()
        found, self._new_durable = self._new_durable, []
        return found

    def flush_chunks(self) -> None:
        """Write all open chunks as they are and wait. No rows may be written afterwards."""
        for chunk in self._chunk[self._chunk != NONE].tolist():
            self._start_write(chunk)
        while self._writing:
            self._collect_writes(wait=True)
        self._not_final[:] = 0
        for chunk in np.flatnonzero(~self._durable).tolist():
            self._report_durable(chunk)

    def _chunks(self, start: int, stop: int) -> range:
        """Return the chunks of rows [start, stop)."""
        size = self._target.chunk_shape[0]
        return range(start // size, -(-stop // size) if stop > start else start // size)

    def _overlap(self, chunk: int, start: int, stop: int) -> int:
        """Return the number of rows [start, stop) in a chunk."""
        size = self._target.chunk_shape[0]
        return min(stop, (chunk + 1) * size) - max(start, chunk * size)

    def _open_chunks(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the buffers of the chunks, with their rows on disk if they were written before."""
        self._calls += 1
        buffers = self._buffer[chunks]
        closed = np.flatnonzero(buffers == NONE)
        self._used[buffers[buffers != NONE]] = self._calls  # before another makes room by writing one of them
        for k in closed.tolist():
            buffers[k] = self._open_chunk(int(chunks[k]))
        return buffers

    def _open_chunk(self, chunk: int) -> int:
        self._collect_writes()
        while chunk in self._writing or not self._free:
            if not self._writing:
                is_open = np.flatnonzero(self._chunk != NONE)
                self._start_write(int(self._chunk[is_open[self._used[is_open].argmin()]]))
            self._collect_writes(wait=True)
        buffer, stored = self._free.pop(), bool(self._stored[chunk])
        first, rows = chunk * self._target.chunk_shape[0], int(self._rows[chunk])
        filled = self._filled[buffer]
        filled[:] = stored
        if not stored:
            filled[:rows] = self._settled.kept_rows(first, first + rows)
        if filled.any():
            self._values[buffer] = self._target.read_chunk(chunk)
        self.read_backs += stored
        self._stale[chunk] = False
        self._missing[buffer] = 0 if stored else rows - int(filled.sum())
        self._used[buffer], self._chunk[buffer], self._buffer[chunk] = self._calls, chunk, buffer
        return buffer

    def _start_write(self, chunk: int) -> None:
        while len(self._writing) >= self._max_in_flight:
            self._collect_writes(wait=True)
        buffer = int(self._buffer[chunk])
        self._chunk[buffer] = self._buffer[chunk] = NONE
        values = self._values[buffer]
        values[~self._filled[buffer]] = self._target.fill  # not what an earlier chunk left in the buffer
        future = self._pool.submit(self._target.write_chunk, chunk, values, self._write_file)
        self._writing[chunk] = (future, buffer)
        future.add_done_callback(lambda _: self._written.put(chunk))

    def _collect_writes(self, *, wait: bool = False) -> None:
        """Take back the buffers of finished writes. If `wait`, wait for one. Raises the first error, always."""
        while wait or not self._written.empty():
            wait = False
            chunk = self._written.get()
            future, buffer = self._writing.pop(chunk)
            self._free.append(buffer)
            self._stored[chunk] = True
            self._error = self._error or future.exception()
            self.written_bytes += 0 if future.exception() else future.result()
            if not self._error and not self._not_final[chunk]:
                self._report_durable(chunk)
        if self._error is not None:
            raise self._error

    def _report_durable(self, chunk: int) -> None:
        self._durable[chunk] = True
        self._new_durable.append(chunk)
