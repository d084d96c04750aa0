"""Chunk files match what zarr-python writes and reads, are whole or absent, and damage is an error."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from sparcom_data.errors import DamagedArchiveError
from sparcom_data.storage import write_durably
from sparcom_data.storage.encoding import decode, encode
from sparcom_extractor.writer.settled import Settled
from sparcom_extractor.writer.targets import ChunkTarget

ROW = (2, 3)  # layers, bytes


def random_rows(*shape: int) -> Any:
    return np.random.default_rng(0).integers(1, 256, size=shape, dtype=np.uint8)


def test_a_half_written_chunk_of_one_axis_is_no_chunk(tmp_path: Path) -> None:
    """If the array has one axis, `c.3.0123.partial` differs from a chunk's name only at its end."""
    (tmp_path / "c.3.0123.partial").write_bytes(b"half")
    (tmp_path / "c.1").write_bytes(b"whole")
    assert ChunkTarget(tmp_path, 100, (10,)).stored_chunks() == {1}


@pytest.mark.parametrize("separator", [".", "/"])
def test_settled_rows_of_an_earlier_run_are_kept(writing: Any, tmp_path: Path, separator: str) -> None:
    """A writer opened over existing chunks keeps the rows of complete instructions and fills the others. It ignores a
    file that a crash left half-written."""
    (tmp_path / "a").mkdir()
    target = ChunkTarget(tmp_path / "a", 6, (2, *ROW), separator=separator)
    truth = random_rows(6, *ROW)
    with writing(target) as writer:
        writer.write_from(0, truth[:1])
        writer.write_from(4, truth[4:])
        writer.flush_chunks()
    target.path(1).parent.mkdir(exist_ok=True, parents=True)
    target.path(1).with_name(target.path(1).name + ".0123.partial").write_bytes(b"half")
    assert target.stored_chunks() == {0, 2}
    truth[5] = 0  # its instruction is interrupted, and has no such row when it runs again
    kept = np.array([(0, 1), (4, 5)])
    with writing(target, settled=Settled(final=kept, kept=kept)) as writer:
        writer.write_from(1, truth[1:4])
        writer.mark_final(1, 4)
        writer.mark_final(5, 6)
        end = time.monotonic() + 20
        while not writer.is_durable(0, 6):  # before the session ends
            assert time.monotonic() < end
            time.sleep(0.001)
    assert np.array_equal(np.concatenate([target.read_chunk(chunk) for chunk in range(3)]), truth)


CHILD = """
import sys, numpy as np
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sparcom_extractor.writer.chunks import ChunkTarget, ChunkWriter
target = ChunkTarget(Path(sys.argv[1]), 400_000, (400, 30, 192))
writer = ChunkWriter(target, ThreadPoolExecutor(4), buffers=8, threads=4, write=None)
for chunk in range(1000):
    writer.write_rows(np.arange(chunk * 400, chunk * 400 + 400), np.full((400, 30, 192), 1 + chunk % 255, np.uint8))
    writer.mark_final(chunk * 400, chunk * 400 + 400)
    for done in range(chunk + 1):
        writer.take_durable()
        if not writer.not_durable(done * 400, done * 400 + 400):
            print(done, flush=True)
"""


@pytest.mark.parametrize("number", range(3))
def test_a_killed_writer_leaves_whole_chunks_or_none(tmp_path: Path, number: int) -> None:
    """After SIGKILL at any point, every file with a chunk's name is whole, and every durable chunk exists."""
    (tmp_path / "a").mkdir()
    target = ChunkTarget(tmp_path / "a", 400_000, (400, 30, 192))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(target.folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    durable = [int(child.stdout.readline()) for _ in range(5 + 7 * number)]
    child.kill()
    durable += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    child.stdout.close()
    child.wait()
    stored = target.stored_chunks()
    assert set(durable) <= stored
    for chunk in stored:
        assert (target.read_chunk(chunk) == 1 + chunk % 255).all()


@pytest.mark.parametrize("rows", [1, 89, 182, 400])
def test_chunks_of_any_size_are_what_zarr_reads(writing: Any, tmp_path: Path, rows: int) -> None:
    """Sizes lie below and above the size from which chunks bypass the page cache, on block boundaries and off them."""
    shape = (rows, 30, 193)
    array = zarr.create_array(
        tmp_path / "a",
        shape=shape,
        chunks=shape,
        dtype="uint8",
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    truth = random_rows(*shape)
    with writing(ChunkTarget(tmp_path / "a", rows, shape)) as writer:
        writer.write_from(0, truth)
        writer.flush_chunks()
    assert np.array_equal(np.asarray(array[:]), truth)


@pytest.mark.parametrize("damage", [b"", b"\0", b"short"])
def test_a_damaged_chunk_is_not_read_back(new_target: Any, writing: Any, tmp_path: Path, damage: bytes) -> None:
    """If a chunk that made room was damaged on disk, reading it back raises an error, each time, instead of returning
    zeros."""
    target, truth = new_target(tmp_path, 4, 2), random_rows(4, *ROW)
    with writing(target, buffers=1) as writer:
        writer.write_from(0, truth[:1])
        writer.write_from(2, truth[2:3])
        data = target.path(0).read_bytes()
        target.path(0).write_bytes(bytes([data[0] ^ 1]) + data[1:] if damage == b"\0" else damage)
        with pytest.raises(DamagedArchiveError, match="must be unchanged; its checksum is wrong"):
            writer.write_from(1, truth[1:2])


def test_a_chunk_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """write_chunk and read_chunk are inverse."""
    target = ChunkTarget(tmp_path, 3, (3, *ROW))
    values = random_rows(3, *ROW)
    target.write_chunk(0, values, write_durably)
    assert np.array_equal(target.read_chunk(0), values)


def test_counts_are_read_from_what_zarr_wrote(new_target: Any, tmp_path: Path) -> None:
    """read_chunk reads a chunk that zarr-python wrote with the archive's codecs."""
    target = new_target(tmp_path, 4, 4, counts=True)
    truth = np.random.default_rng(0).binomial(80, 0.37, size=(4, *ROW)).astype(np.uint32)
    zarr.open_array(target.folder, mode="r+")[:] = truth
    assert np.array_equal(target.read_chunk(0), truth)


def test_counts_are_byte_for_byte_what_zarr_writes(new_target: Any, tmp_path: Path) -> None:
    """The bytes equal those of zarr-python's codecs for the same counts, and read back equal."""
    target = new_target(tmp_path, 40, 40, counts=True)
    truth = np.random.default_rng(0).binomial(80, 0.37, size=(40, *ROW)).astype("<u4")
    zarr.open_array(target.folder, mode="r+")[:] = truth
    held = b"".join(encode(truth, compressed=True))
    assert held == target.path(0).read_bytes()
    assert np.array_equal(decode(held, truth.shape, truth.dtype, compressed=True), truth)


@pytest.mark.parametrize("written_compressed", [True, False])
def test_a_chunk_of_another_codec_is_refused(tmp_path: Path, written_compressed: bool) -> None:
    """A valid checksum over bytes of another codec or length is damage, not data."""
    shape, dtype = (64,), np.dtype("<u4")
    written = ChunkTarget(tmp_path, 64, shape, dtype=dtype, compressed=written_compressed)
    written.write_chunk(0, np.arange(64, dtype=dtype), write_durably)
    with pytest.raises(DamagedArchiveError, match=r"chunk .*c\.0 must be unchanged"):
        ChunkTarget(tmp_path, 64, shape, dtype=dtype, compressed=not written_compressed).read_chunk(0)
