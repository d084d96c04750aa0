"""Rule 3: a file holds all of its bytes, synced, or does not exist."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from sparcom_data.errors import StorageError
from sparcom_data.storage import DIRECT_FROM, DurableStore, aligned_memory, crc32c_suffix, write_durably

Tree = Callable[[Path], dict[str, bytes]]


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Limit files to `limit` bytes by the operating system, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_parts_are_written_one_after_the_other(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    """The file holds the parts in order, replaces earlier contents, and leaves nothing beside it."""
    path = tmp_path_factory.getbasetemp() / "durable" / "file"
    path.parent.mkdir(exist_ok=True)
    write_durably(path, parts)
    assert path.read_bytes() == b"".join(parts)
    assert list(path.parent.iterdir()) == [path]


def test_arrays_are_written_as_their_bytes(tmp_path: Path) -> None:
    """A part may be any contiguous buffer: its length counts bytes, not items."""
    values = np.arange(1000, dtype=np.int64)
    write_durably(tmp_path / "file", [values.data, values.data.cast("B")[:4]])
    assert (tmp_path / "file").read_bytes() == values.tobytes() + values.tobytes()[:4]


@pytest.mark.parametrize("existing", [None, b"the old content"])
def test_a_file_that_does_not_fit_keeps_the_old_one(tmp_path: Path, tree: Tree, existing: bytes | None) -> None:
    """If the system stops a write half-way, the old contents stay, nothing new is left, and the error says why."""
    if existing is not None:
        (tmp_path / "file").write_bytes(existing)
    with (
        largest_file(100_000),
        pytest.raises(StorageError, match=r"writing .*file failed: File too large \(errno 27\)"),
    ):
        write_durably(tmp_path / "file", [b"x" * 99_999, b"y" * 2])
    assert tree(tmp_path) == ({} if existing is None else {"file": existing})
    write_durably(tmp_path / "file", [b"new"])
    assert tree(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("call", ["write", "fdatasync", "replace"])
def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether writing, syncing or renaming fails, nothing is left and the error says why."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "replace" else os, call, fail)
        with pytest.raises(StorageError, match="Input/output error"):
            write_durably(tmp_path / "file", [b"abc"])
    assert tree(tmp_path) == {}


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path, tree: Tree) -> None:
    """A path that cannot be created raises StorageError, and the file in its way stays."""
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(StorageError, match="errno"):
        write_durably(tmp_path / "file" / "inner", [b"x"])
    assert tree(tmp_path) == {"file": b"abc"}


def test_bytes_are_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is data, name, folder: a name that survives a power cut has its data."""
    calls: list[str] = []

    def recorded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    monkeypatch.setattr(os, "write", recorded("write", os.write))
    monkeypatch.setattr(os, "fdatasync", recorded("sync data", os.fdatasync))
    monkeypatch.setattr(os, "fsync", recorded("sync folder", os.fsync))
    monkeypatch.setattr(Path, "replace", recorded("rename", Path.replace))
    write_durably(tmp_path / "file", [b"abc"])
    assert calls == ["write", "sync data", "rename", "sync folder"]


def random_memory(size: int) -> memoryview:
    memory = aligned_memory(size)
    memory[:] = np.random.default_rng(size).bytes(size)
    return memory


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the direct writes."""
    lengths: list[int] = []
    real = os.write

    def write(descriptor: int, view: memoryview) -> int:
        written = real(descriptor, view)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            lengths.append(written)
        return written

    monkeypatch.setattr(os, "write", write)
    return lengths


def takes_direct_writes(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("size", [DIRECT_FROM, DIRECT_FROM + 1, DIRECT_FROM + 4095, 3 * DIRECT_FROM + 4096])
def test_large_aligned_parts_use_direct_io(tmp_path: Path, direct: list[int], size: int) -> None:
    """Whole blocks are written directly in one call; the rest and the next part go through the page cache."""
    memory = random_memory(size)
    write_durably(tmp_path / "file", [memory, b"tail"])
    assert (tmp_path / "file").read_bytes() == bytes(memory) + b"tail"
    assert direct == ([size - size % 4096] if takes_direct_writes(tmp_path) else [])


def test_small_or_misaligned_parts_use_the_page_cache(tmp_path: Path, direct: list[int]) -> None:
    """Small parts, and parts misaligned in memory or in the file, are not written directly."""
    memory = random_memory(2 * DIRECT_FROM)
    for name, parts in {
        "small": [memory[: DIRECT_FROM - 1]],
        "memory": [memory[1:]],
        "file": [b"x", memory],
    }.items():
        write_durably(tmp_path / name, parts)
        assert (tmp_path / name).read_bytes() == b"".join(parts)
    assert direct == []


@pytest.mark.parametrize("call", ["flag", "write"])
def test_a_file_system_without_direct_writes_gets_buffered_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """If O_DIRECT is refused with EINVAL, at the flag or at the write, the bytes go through the page cache."""
    real_flag, real_write = fcntl.fcntl, os.write

    def flag(descriptor: int, command: int, value: int = 0) -> int:
        if call == "flag" and command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_flag(descriptor, command, value)

    def write(descriptor: int, view: memoryview) -> int:
        if real_flag(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, view)

    monkeypatch.setattr(fcntl, "fcntl", flag)
    monkeypatch.setattr(os, "write", write)
    memory = random_memory(2 * DIRECT_FROM + 5)
    write_durably(tmp_path / "file", [memory])
    assert (tmp_path / "file").read_bytes() == bytes(memory)


def test_a_failing_direct_write_is_an_error(tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error is not retried through the cache; nothing is left behind."""
    real_flag, real_write = fcntl.fcntl, os.write
    flags: dict[int, int] = {}  # kept here, so that the file system need not support direct writes

    def flag(descriptor: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL:
            flags[descriptor] = value
            return 0
        return flags.get(descriptor, real_flag(descriptor, command, value))

    def write(descriptor: int, view: memoryview) -> int:
        if flags.get(descriptor, 0) & os.O_DIRECT:
            raise OSError(errno.EIO, "Input/output error")
        return real_write(descriptor, view)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", flag)
        patch.setattr(os, "write", write)
        with pytest.raises(StorageError, match="Input/output error"):
            write_durably(tmp_path / "file", [random_memory(2 * DIRECT_FROM)])
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("limit", [DIRECT_FROM // 2, DIRECT_FROM // 2 + 1000])
def test_a_direct_write_that_does_not_fit_leaves_nothing(tmp_path: Path, tree: Tree, limit: int) -> None:
    """The system takes some of the blocks, even a fraction of one, and then refuses: nothing is left."""
    with largest_file(limit), pytest.raises(StorageError, match="File too large"):
        write_durably(tmp_path / "file", [random_memory(2 * DIRECT_FROM)])
    assert tree(tmp_path) == {}


def test_short_direct_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system takes only some blocks, or part of one, writing continues from there."""
    real, lengths = os.write, iter([8192, 12288, 5000, 4096])
    monkeypatch.setattr(os, "write", lambda descriptor, view: real(descriptor, view[: next(lengths, len(view))]))
    memory = random_memory(2 * DIRECT_FROM + 77)
    write_durably(tmp_path / "file", [memory, b"tail"])
    assert (tmp_path / "file").read_bytes() == bytes(memory) + b"tail"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system takes only some bytes per call, writing continues from there."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: real(descriptor, view[:7]))
    write_durably(tmp_path / "file", [bytes(range(100)), bytes(range(50))])
    assert (tmp_path / "file").read_bytes() == bytes([*range(100), *range(50)])


def test_the_checksum_is_the_published_one() -> None:
    """The CRC32C of the standard's check string is 0xE3069283, stored lowest byte first."""
    assert crc32c_suffix(b"123456789") == bytes.fromhex("839206e3")
    assert crc32c_suffix(memoryview(b"123456789")) == google_crc32c.value(b"123456789").to_bytes(4, "little")


@given(st.binary(min_size=1, max_size=500))
def test_a_chunk_equals_zarrs(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Bytes and our suffix equal the chunk that zarr's own codecs write."""
    array = zarr.create_array(
        tmp_path_factory.getbasetemp() / "crc.zarr",
        data=np.frombuffer(data, dtype=np.uint8),
        chunks=(len(data),),
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    chunk = Path(str(array.store_path).removeprefix("file://")) / "c" / "0"
    assert chunk.read_bytes() == data + crc32c_suffix(data)


def test_zarr_writes_nothing_past_the_store(tmp_path: Path, writes: Any) -> None:
    """Groups, implicit parents, arrays, attributes and chunks: write_durably wrote every file."""
    root = zarr.create_group(DurableStore(tmp_path / "a.zarr"), attributes={"a": 1})
    root.create_array("deep/er/array", shape=(5,), chunks=(2,), dtype="i4")[:] = 1
    root.update_attributes({"b": 2})
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(writes.paths)
    store = DurableStore(tmp_path / "a.zarr")
    writes.restart()
    zarr.core.sync.sync(
        store.set_if_not_exists("zarr.json", zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(b""))
    )
    assert not writes.paths, "existing files are not rewritten"
    store.set_sync("key", zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(b"v"))
    assert writes.paths == [tmp_path / "a.zarr" / "key"]


def test_a_failing_store_gives_the_reason(tmp_path: Path) -> None:
    """If the system refuses a write of zarr, the caller gets a StorageError instead of losing a chunk."""
    array = zarr.create_array(DurableStore(tmp_path / "a.zarr"), shape=(50_000,), dtype="u1", compressors=None)
    with largest_file(20_000), pytest.raises(StorageError, match="File too large"):
        array[:] = 1
    assert not list(tmp_path.rglob("*.partial"))
