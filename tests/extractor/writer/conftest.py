"""Small archives, chunk targets and polls, shared by the tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from sparcom_extractor.protocol import FinishedRequest, PollReply
from sparcom_extractor.writer.chunks import ChunkWriter
from sparcom_extractor.writer.rows import RANGES, StepRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import ArrayPart, ChunkTarget

ROW = (2, 3)  # layers, bytes
GARBAGE = 255  # in rows that no test may see
SECONDS = 20.0


def make_target(folder: Path, rows: int, chunk_rows: int, *, counts: bool = False) -> ChunkTarget:
    """Return the target of an empty array, created by zarr with the archive's codecs."""
    blosc = [BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle")] if counts else []
    dtype = np.dtype("<u4" if counts else "u1")
    array = zarr.create_array(
        folder / "a",
        shape=(rows, *ROW),
        chunks=(chunk_rows, *ROW),
        dtype=dtype,
        compressors=[*blosc, Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return ChunkTarget(folder / "a", rows, tuple(array.chunks), dtype=dtype, compressed=counts)


def read_by_zarr(target: ChunkTarget) -> NDArray[Any]:
    return np.asarray(zarr.open_array(target.folder, mode="r")[:])


class Writer(ChunkWriter):
    """A chunk writer that also takes consecutive rows, and says whether rows are durable."""

    def write_from(self, start: int, values: NDArray[Any]) -> None:
        self.write_rows(np.arange(start, start + len(values)), values)

    def is_durable(self, start: int, stop: int) -> bool:
        """Return whether all chunks of rows [start, stop) are on disk and final. Raises the error of a failed write."""
        self.take_durable()
        return not self.not_durable(start, stop)


@contextmanager
def open_writer(
    target: ChunkTarget, buffers: int = 2, threads: int = 2, write: Any = None, **more: Any
) -> Iterator[Writer]:
    with ThreadPoolExecutor(threads) as pool:
        yield Writer(target, pool, buffers=buffers, threads=threads, write=write, **more)


@dataclass(frozen=True)
class Planned:
    """An instruction: `length` rows of `capacity` hold data; -1 means it is dropped."""

    index: int
    row: int
    capacity: int
    length: int

    @property
    def finished(self) -> FinishedRequest:
        return FinishedRequest(self.index, self.row, self.capacity, self.length)


class SmallArchive:
    """The masks of an archive being written, and the expected ones: never all zero in a row that holds data.

    sizes: (capacity, length) of each instruction, one after the other on the token axis.
    """

    def __init__(self, folder: Path, sizes: Sequence[tuple[int, int]], chunk_rows: int) -> None:
        starts = np.cumsum([0, *(capacity for capacity, _ in sizes)]).tolist()
        self.instructions = [Planned(index, starts[index], *size) for index, size in enumerate(sizes)]
        self.rows = starts[-1]
        self.target = make_target(folder, self.rows, chunk_rows)
        self.masks = np.random.default_rng(1).integers(1, GARBAGE, size=(self.rows, *ROW), dtype=np.uint8)
        self.ids = np.arange(1000, 1000 + self.rows, dtype=np.int32)

    @contextmanager
    def open_session(self, **bounds: Any) -> Iterator[CaptureSession]:
        session = CaptureSession([ArrayPart("a", self.target, ROW)], len(self.instructions), **bounds)
        try:
            yield session
        finally:
            session.close()

    def step(self, item: Planned, offset: int, rows: int) -> StepRows:
        """Return a step with rows of one instruction; those past its end are garbage."""
        own = slice(item.row + offset, item.row + offset + rows)
        masks = self.masks[own].copy()
        masks[max(0, item.length - offset) :] = GARBAGE
        ranges = np.array([(item.index, item.row, item.capacity, 0, rows, offset, -1)], dtype=RANGES)
        return StepRows(ranges, {"a": masks}, self.ids[own], np.arange(offset, offset + rows))

    def run(self, session: CaptureSession, item: Planned) -> None:
        """Append all rows of an instruction and finish it."""
        session.append_rows(self.step(item, 0, item.capacity))
        session.finish_requests([item.finished])

    def assert_right(self) -> None:
        """Check that plain zarr reads the truth in every valid row and zeros in reserved rows."""
        found = read_by_zarr(self.target)
        for item in self.instructions:
            if item.length >= 0:
                end = item.row + item.length
                assert np.array_equal(found[item.row : end], self.masks[item.row : end]), item
                assert not found[end : item.row + item.capacity].any(), item

    def assert_on_disk(self, item: Planned) -> None:
        """Check that every chunk of an instruction's rows is a whole file and holds them."""
        for row in range(item.row, item.row + item.length):
            chunk, offset = divmod(row, self.target.chunk_shape[0])
            assert np.array_equal(self.target.read_chunk(chunk)[offset], self.masks[row]), (item, row)


class Poller:
    """Polls a session and checks each reply."""

    def __init__(self, archive: SmallArchive, session: CaptureSession) -> None:
        self.archive = archive
        self.session = session
        self.completed: dict[int, tuple[list[int], list[int]]] = {}
        self.failed: dict[int, str] = {}
        self.last = PollReply()

    def poll(self) -> PollReply:
        assert not self.last.drained or self.last.error, "nothing happens after the end"
        self.last = self.session.poll()
        for item in self.last.completed:
            assert item.index not in self.completed, "reported twice"
            assert item.index not in self.failed
            self.archive.assert_on_disk(self.archive.instructions[item.index])
            ids, positions = (np.frombuffer(data, dtype=np.int32).tolist() for data in (item.ids, item.positions))
            self.completed[item.index] = ids, positions
        for failure in self.last.failed:
            assert failure.index not in self.completed
            assert failure.index not in self.failed, "reported twice"
            self.failed[failure.index] = failure.reason
        return self.last

    def until(self, done: Callable[[PollReply], Any]) -> PollReply:
        end = time.monotonic() + SECONDS
        while not done(reply := self.poll()):
            assert time.monotonic() < end, reply
            time.sleep(0.001)
        return reply


# Hypothesis tests take only session fixtures, so these return functions and classes.
@pytest.fixture(scope="session")
def new_target() -> Callable[..., ChunkTarget]:
    return make_target


@pytest.fixture(scope="session")
def read_array() -> Callable[[ChunkTarget], NDArray[Any]]:
    return read_by_zarr


@pytest.fixture(scope="session")
def writing() -> Callable[..., Any]:
    return open_writer


@pytest.fixture(scope="session")
def new_archive() -> type[SmallArchive]:
    return SmallArchive


@pytest.fixture(scope="session")
def poller() -> type[Poller]:
    return Poller
