"""Rows put in any order, in any pieces, again and again, end up on disk as the truth, in whole chunks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from sparcom_data.errors import DamagedArchiveError, StorageError
from sparcom_extractor.writer import chunks
from sparcom_extractor.writer.chunks import ChunkTarget, ChunkWriter, read_chunk, write_chunk
from sparcom_extractor.writer.encoding import CRC_BYTES, decode, encode

ROW = (2, 3)  # layers, bytes


def target_in(folder: Path, rows: int, chunk_rows: int) -> ChunkTarget:
    """An array as archives have it, empty, made by zarr itself."""
    array = zarr.create_array(
        folder / "a",
        shape=(rows, *ROW),
        chunks=(chunk_rows, *ROW),
        dtype="uint8",
        compressors=[Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return ChunkTarget(folder / "a", rows, tuple(array.chunks))


def counts_in(folder: Path, instructions: int, chunk_rows: int) -> ChunkTarget:
    """The counts of an archive, empty, made by zarr itself: uint32 (instruction, layer, neuron)."""
    array = zarr.create_array(
        folder / "a",
        shape=(instructions, *ROW),
        chunks=(chunk_rows, *ROW),
        dtype="uint32",
        compressors=[BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return ChunkTarget(folder / "a", instructions, tuple(array.chunks), dtype="uint32", compressor="blosc")


def read_by_zarr(target: ChunkTarget) -> NDArray[np.uint8]:
    return np.asarray(zarr.open_array(target.folder, mode="r")[:])  # type: ignore[arg-type]


def random_rows(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows that are never all zero."""
    return np.random.default_rng(seed).integers(1, 256, size=(rows, *ROW), dtype=np.uint8)


@contextmanager
def writing(target: ChunkTarget, buffers: int = 2, threads: int = 2) -> Iterator[ChunkWriter]:
    writer = ChunkWriter(target, buffers=buffers, threads=threads)
    try:
        yield writer
    finally:
        writer.close()


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[int, int]]]:
    """(rows, chunk rows, buffers, pieces [start, stop) that cover every row, some twice, in any order)."""
    rows = draw(st.integers(1, 24))
    cuts = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=8))})
    pieces = list(pairwise(cuts))
    again = draw(st.lists(st.sampled_from(pieces), max_size=4))
    return rows, draw(st.integers(1, rows)), draw(st.integers(1, 4)), draw(st.permutations(pieces + again))


@settings(max_examples=120, deadline=None)
@given(delivery=deliveries(), data=st.data())
def test_any_order_of_delivery_gives_the_truth(
    delivery: tuple[int, int, int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    """Random pieces, repeats, orders and settlings, one buffer or several: plain zarr reads exactly what was put."""
    rows, chunk_rows, buffers, pieces = delivery
    truth = random_rows(rows)
    left = {piece: pieces.count(piece) for piece in pieces}
    waiting: list[tuple[int, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(target := target_in(Path(folder), rows, chunk_rows), buffers=buffers) as writer,
    ):
        for piece in pieces:
            writer.put(piece[0], truth[slice(*piece)])
            left[piece] -= 1
            if not left[piece]:
                waiting.append(piece)
            while waiting and data.draw(st.booleans()):
                writer.settle(*waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            assert_durable_is_true(writer, target, truth)
        for piece in waiting:
            writer.settle(*piece)
        wait_until_durable(writer, rows)
        assert np.array_equal(read_by_zarr(target), truth)


def assert_durable_is_true(writer: ChunkWriter, target: ChunkTarget, truth: NDArray[np.uint8]) -> None:
    """What is called durable is in its file, whole and right."""
    for chunk in range(-(-target.rows // target.chunk_rows)):
        start, stop = chunk * target.chunk_rows, chunk * target.chunk_rows + target.rows_of(chunk)
        if writer.durable(start, stop):
            held = read_chunk(target.path(chunk), target.chunk_shape)
            assert np.array_equal(held[: stop - start], truth[start:stop])


def wait_until_durable(writer: ChunkWriter, rows: int) -> None:
    for _ in range(2000):
        if writer.durable(0, rows):
            return
        threading.Event().wait(0.001)
    raise AssertionError("never durable")


def test_a_settled_chunk_is_written_before_the_rest(tmp_path: Path) -> None:
    """Settling the last row of a chunk writes it; the chunk beside it, of which a row is open, stays in memory."""
    target, truth = target_in(tmp_path, 8, 4), random_rows(8)
    with writing(target) as writer:
        writer.put(0, truth[:3])  # the fourth row never comes
        writer.put(4, truth[4:7])
        writer.settle(0, 7)
        wait_until_durable(writer, 4)
        assert target.path(0).exists()
        assert not target.path(1).exists()
        assert not writer.durable(4, 5)
        writer.settle(7, 8)
        wait_until_durable(writer, 8)


def test_a_full_chunk_is_written_before_it_is_settled(tmp_path: Path) -> None:
    """The disk works while the settlement is on its way; durable it is only afterwards, and rows may come again."""
    target, truth = target_in(tmp_path, 8, 4), random_rows(8)
    with writing(target) as writer:
        writer.put(0, truth[:3])
        assert not writer._writing
        writer.put(3, truth[3:5])
        assert list(writer._writing) == [0] or target.path(0).exists(), "on its way, or there already"
        assert not writer.durable(0, 4)
        writer.put(0, truth[:4])  # computed again after a preemption
        assert not writer._writing, "a chunk that was full before is not written for every row that comes again"
        writer.put(5, truth[5:])
        writer.settle(0, 8)
        wait_until_durable(writer, 8)
    assert np.array_equal(read_chunk(target.path(0), target.chunk_shape), truth[:4])


def test_the_last_chunk_is_cut(tmp_path: Path) -> None:
    """A token axis that is no multiple of the chunk: the last chunk is settled by the rows that it has."""
    target, truth = target_in(tmp_path, 5, 4), random_rows(5)
    with writing(target) as writer:
        writer.put(4, truth[4:])
        writer.settle(4, 5)
        for _ in range(2000):
            if writer.durable(4, 5):
                break
            threading.Event().wait(0.001)
        assert target.path(1).stat().st_size == target.chunk_bytes + CRC_BYTES
        assert np.array_equal(read_by_zarr(target)[4], truth[4])


def test_an_old_open_chunk_makes_room_and_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every buffer taken and nothing settled the oldest chunk is written as it is; later rows join it."""
    reads: list[Path] = []
    monkeypatch.setattr(chunks, "read_chunk", lambda path, *rest: reads.append(path) or read_chunk(path, *rest))
    target, truth = target_in(tmp_path, 12, 4), random_rows(12)
    with writing(target, buffers=2) as writer:
        for row in (0, 4, 8):  # three chunks, two buffers
            writer.put(row, truth[row : row + 2])
        assert target.path(0).exists(), "the oldest chunk was not put aside"
        assert not writer.durable(0, 1), "a chunk that is put aside is not finished"
        for row in (2, 6, 10):
            writer.put(row, truth[row : row + 2])
        assert target.path(0) in reads
        writer.flush()
        assert np.array_equal(read_by_zarr(target), truth)


def test_buffers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks are open at once, no buffer is made after the start and never two hold one chunk."""
    target, truth = target_in(tmp_path, 60, 2), random_rows(60)
    with writing(target, buffers=3) as writer:
        monkeypatch.setattr(chunks, "aligned_memory", None)  # a further buffer would need it
        for row in [*range(0, 60, 2), *range(1, 60, 2)]:
            writer.put(row, truth[row : row + 1])
            assert len(writer._free) + len(writer._open) + len(writer._writing) == 3
            assert not set(writer._open) & set(writer._writing)
        monkeypatch.undo()
        writer.flush()
        assert np.array_equal(read_by_zarr(target), truth)


def test_rows_that_nobody_put_are_zero(tmp_path: Path) -> None:
    """A buffer that held another chunk's rows is cleared before it is used again."""
    target = target_in(tmp_path, 4, 2)
    with writing(target, buffers=1) as writer:
        writer.put(0, random_rows(2))
        writer.settle(0, 2)
        writer.put(2, random_rows(1))
        writer.settle(2, 4)
        wait_until_durable(writer, 4)
    assert not read_by_zarr(target)[3].any()


def test_a_failed_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`durable` raises what the write raised; the chunk is never called durable."""

    def refuse(path: Path, parts: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(chunks, "write_durably", refuse)
    with writing(target_in(tmp_path, 4, 2)) as writer:
        writer.put(0, random_rows(2))
        writer.settle(0, 2)
        with pytest.raises(StorageError, match="no space left"):
            wait_until_durable(writer, 2)


def test_a_failed_write_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, the writer gives the same reason again; it does not call the lost chunk durable."""

    def refuse(path: Path, parts: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(chunks, "write_durably", refuse)
    with writing(target_in(tmp_path, 4, 2)) as writer:
        writer.put(0, random_rows(2))
        writer.settle(0, 2)
        for _ in range(3):
            with pytest.raises(StorageError, match="no space left"):
                wait_until_durable(writer, 2)
        with pytest.raises(StorageError, match="no space left"):
            writer.put(2, random_rows(2))


class SlowDisk:
    """A disk that takes a chunk only when it is let; how many stand before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Semaphore(0)
        self._real = chunks.write_durably
        monkeypatch.setattr(chunks, "write_durably", self._write)

    def _write(self, path: Path, parts: Any) -> None:
        assert self.gate.acquire(timeout=30)
        self._real(path, parts)

    def let(self, chunks: int, after: float = 0.0) -> None:
        threading.Timer(after, self.gate.release, args=(chunks,)).start()


def test_put_waits_for_the_disk_and_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every buffer on its way to a disk that stands still, put returns only after it moves, and counts it."""
    disk, target, truth = SlowDisk(monkeypatch), target_in(tmp_path, 6, 2), random_rows(6)
    with writing(target, buffers=2, threads=1) as writer:
        for row in (0, 2):
            writer.put(row, truth[row : row + 2])
            writer.settle(row, row + 2)
        assert writer.backpressure_seconds == 0
        started = time.monotonic()
        disk.let(3, after=0.2)
        writer.put(4, truth[4:])
        assert 0.1 < writer.backpressure_seconds <= time.monotonic() - started
        writer.flush()
        assert np.array_equal(read_by_zarr(target), truth)


def test_no_more_than_two_chunks_a_thread_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stands still takes no more memory than that, however many buffers there are."""
    disk, target, truth = SlowDisk(monkeypatch), target_in(tmp_path, 40, 2), random_rows(40)
    most = 0
    with writing(target, buffers=20, threads=2) as writer:
        disk.let(20, after=0.1)
        for row in range(0, 40, 2):
            writer.put(row, truth[row : row + 2])
            writer.settle(row, row + 2)
            most = max(most, len(writer._writing))
        writer.flush()
        assert most == 2 * chunks.IN_FLIGHT
        assert writer.backpressure_seconds > 0
        assert np.array_equal(read_by_zarr(target), truth)


@pytest.mark.parametrize(("threads", "short"), [(1, 0), (4, 0), (1, 4)])
def test_requests_that_grow_together_are_not_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, short: int
) -> None:
    """Each of 10 requests adds a row a step in chunks of its own: with enough buffers nothing is read back."""
    reads: list[Path] = []
    monkeypatch.setattr(chunks, "read_chunk", lambda path, *rest: reads.append(path) or read_chunk(path, *rest))
    target, truth = target_in(tmp_path, 80, 4), random_rows(80)
    with writing(target, buffers=chunks.buffers_for(10, threads) - short, threads=threads) as writer:
        for step in range(8):
            for request in range(10):
                row = 8 * request + step
                writer.put(row, truth[row : row + 1])
                writer.settle(row, row + 1)
        writer.flush()
        assert bool(reads) == bool(short)
        assert np.array_equal(read_by_zarr(target), truth)


def test_a_half_written_chunk_of_one_axis_is_no_chunk(tmp_path: Path) -> None:
    """Where the array has one axis, `c.3.0123.partial` differs from a chunk's name only by what follows."""
    (tmp_path / "c.3.0123.partial").write_bytes(b"half")
    (tmp_path / "c.1").write_bytes(b"whole")
    assert ChunkTarget(tmp_path, 100, (10,)).stored_chunks() == {1}


@pytest.mark.parametrize("separator", [".", "/"])
def test_chunks_of_an_earlier_run_are_kept(tmp_path: Path, separator: str) -> None:
    """A writer that is opened over chunks on disk adds to them; what a crash left half-written is not one of them."""
    (tmp_path / "a").mkdir()
    target = ChunkTarget(tmp_path / "a", 6, (2, *ROW), separator)
    truth = random_rows(6)
    with writing(target) as writer:
        writer.put(0, truth[:1])
        writer.put(4, truth[4:5])
        writer.flush()
    target.path(1).parent.mkdir(exist_ok=True, parents=True)
    target.path(1).with_name(target.path(1).name + ".0123.partial").write_bytes(b"half")
    assert target.stored_chunks() == {0, 2}
    with writing(target) as writer:
        for row in (1, 2, 3, 5):
            writer.put(row, truth[row : row + 1])
        writer.flush()
    found = [read_chunk(target.path(chunk), target.chunk_shape) for chunk in range(3)]
    assert np.array_equal(np.concatenate(found), truth)


CHILD = """
import sys, numpy as np
from pathlib import Path
from sparcom_extractor.writer.chunks import ChunkTarget, ChunkWriter
target = ChunkTarget(Path(sys.argv[1]), 400_000, (400, 30, 192))
writer = ChunkWriter(target, buffers=8, threads=4)
for chunk in range(1000):
    writer.put(chunk * 400, np.full((400, 30, 192), 1 + chunk % 255, np.uint8))
    writer.settle(chunk * 400, chunk * 400 + 400)
    for done in range(chunk + 1):
        if writer.durable(done * 400, done * 400 + 400):
            print(done, flush=True)
"""


@pytest.mark.parametrize("number", range(3))
def test_a_killed_writer_leaves_whole_chunks_or_none(tmp_path: Path, number: int) -> None:
    """SIGKILL at any point: every file with a chunk's name is whole, and what was called durable is there."""
    (tmp_path / "a").mkdir()
    target = ChunkTarget(tmp_path / "a", 400_000, (400, 30, 192))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(target.folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(5 + 7 * number)]
    child.kill()
    told += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    child.stdout.close()
    child.wait()
    stored = target.stored_chunks()
    assert set(told) <= stored
    for chunk in stored:
        assert (read_chunk(target.path(chunk), target.chunk_shape) == 1 + chunk % 255).all()


@pytest.mark.parametrize("rows", [1, 89, 182, 400])
def test_chunks_of_any_size_are_what_zarr_reads(tmp_path: Path, rows: int) -> None:
    """Below and above the size from which chunks go past the page cache, on block borders and off them."""
    shape = (rows, 30, 193)
    array = zarr.create_array(
        tmp_path / "a",
        shape=shape,
        chunks=shape,
        dtype="uint8",
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    truth = np.random.default_rng(rows).integers(0, 256, size=shape, dtype=np.uint8)
    with writing(ChunkTarget(tmp_path / "a", rows, shape)) as writer:
        writer.put(0, truth)
        writer.flush()
    assert np.array_equal(np.asarray(array[:]), truth)


@pytest.mark.parametrize("damage", [b"", b"\0", b"short"])
def test_a_chunk_that_was_damaged_meanwhile_is_not_read_back(tmp_path: Path, damage: bytes) -> None:
    """A chunk put aside and damaged on disk is an error when it is needed again, not zeros."""
    target, truth = target_in(tmp_path, 4, 2), random_rows(4)
    with writing(target, buffers=1) as writer:
        writer.put(0, truth[:1])
        writer.put(2, truth[2:3])
        data = target.path(0).read_bytes()
        target.path(0).write_bytes(bytes([data[0] ^ 1]) + data[1:] if damage == b"\0" else damage)
        with pytest.raises(DamagedArchiveError, match="must be as it was written; its checksum is wrong"):
            writer.put(1, truth[1:2])


def test_a_chunk_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """write_chunk and read_chunk are inverse."""
    values = random_rows(3)
    write_chunk(tmp_path / "0", values)
    assert np.array_equal(read_chunk(tmp_path / "0", values.shape), values)


@settings(max_examples=60, deadline=None)
@given(delivery=deliveries(), top=st.sampled_from([2, 300, 2**32]))
def test_counts_are_what_zarr_reads(delivery: tuple[int, int, int, list[tuple[int, int]]], top: int) -> None:
    """uint32 counts in any order and from memory too small for them: plain zarr-python reads what was put."""
    rows, chunk_rows, buffers, pieces = delivery
    truth = np.random.default_rng(rows).integers(0, top, size=(rows, *ROW), dtype=np.uint32)
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(target := counts_in(Path(folder), rows, chunk_rows), buffers=buffers) as writer,
    ):
        for start, stop in pieces:
            writer.put(start, truth[start:stop])
        writer.flush()
        assert np.array_equal(read_by_zarr(target), truth)


def test_counts_are_read_from_what_zarr_wrote(tmp_path: Path) -> None:
    """The other way round: read_chunk takes a chunk that zarr-python wrote with the archive's codecs."""
    target = counts_in(tmp_path, 4, 4)
    truth = np.random.default_rng(0).binomial(80, 0.37, size=(4, *ROW)).astype(np.uint32)
    zarr.open_array(target.folder, mode="r+")[:] = truth
    assert np.array_equal(read_chunk(target.path(0), target.chunk_shape, "uint32", "blosc"), truth)


def test_counts_are_byte_for_byte_what_zarr_writes(tmp_path: Path) -> None:
    """The same bytes as zarr-python's own codecs make of the same counts, and read back as they were."""
    target = counts_in(tmp_path, 40, 40)
    truth = np.random.default_rng(0).binomial(80, 0.37, size=(40, *ROW)).astype("<u4")
    zarr.open_array(target.folder, mode="r+")[:] = truth
    held = b"".join(encode(truth, "blosc"))
    assert held == target.path(0).read_bytes()
    assert np.array_equal(decode(held, truth.shape, truth.dtype, "blosc"), truth)


@pytest.mark.parametrize(("written", "read"), [(None, "blosc"), ("blosc", None)])
def test_a_chunk_of_another_codec_is_refused(tmp_path: Path, written: Any, read: Any) -> None:
    """A right checksum over bytes of another codec or length is damage, not data."""
    write_chunk(tmp_path / "c", np.arange(64, dtype="<u4"), written)
    with pytest.raises(DamagedArchiveError, match=r"chunk .*c must be as it was written"):
        read_chunk(tmp_path / "c", (64,), "uint32", read)


def test_values_of_another_type_are_refused(tmp_path: Path) -> None:
    """A count of 256 would become 0 in a mask array; NumPy says nothing, the writer does."""
    with (
        writing(target_in(tmp_path, 4, 2)) as writer,
        pytest.raises(TypeError, match="must be uint8; got uint32"),
    ):
        writer.put(0, np.full((1, *ROW), 256, dtype=np.uint32))


@pytest.mark.parametrize("wrong", [{"dtype": "int64"}, {"compressor": "zstd"}])
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Only the two types and codecs that archives have."""
    with pytest.raises(ValueError, match="got"):
        ChunkTarget(tmp_path, 4, (2, 3), **wrong)


def test_a_writer_without_buffers_is_refused(tmp_path: Path) -> None:
    """At least one buffer."""
    with pytest.raises(ValueError, match="at least one buffer; got 0"):
        ChunkWriter(ChunkTarget(tmp_path, 4, (2, 3)), buffers=0, threads=1)
