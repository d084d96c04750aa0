"""The fast path returns the same rows as zarr, or defers to zarr."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from sparcom_data import archive as archive_module
from sparcom_data import raw_rows as module
from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError
from sparcom_data.raw_rows import RawRows, raw_rows

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
NAME = "neuron/active"
CHUNK = "neuron/active/c.2.0.0"  # rows 16 to 24


def make(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> zarr.Array[Any]:
    """Write an array of random numbers and open it for reading; each chunk has one CRC32C unless told otherwise."""
    shutil.rmtree(path, ignore_errors=True)
    given_: dict[str, Any] = {"dtype": "uint8", "compressors": [Crc32cCodec()], "fill_value": 7, **options}
    array = zarr.create_array(LocalStore(path), shape=shape, chunks=chunks, **given_)
    if array.dtype.kind in "iufb":
        values = np.random.default_rng(0).integers(0, 256, size=shape).astype(array.dtype)
        array.with_config({"write_empty_chunks": True})[...] = values
    return zarr.open_array(LocalStore(path), mode="r")


def known(array: zarr.Array[Any]) -> RawRows:
    """Return the fast path, which must apply."""
    raw = raw_rows(array)
    assert raw is not None
    return raw


def read(raw: RawRows, start: int, stop: int) -> NDArray[Any] | None:
    """Return rows [start, stop), or None if zarr must read them."""
    out = np.full((stop - start, *raw.row), 3, dtype=raw.dtype)
    return out if raw.read_into(out, start) else None


@SETTINGS
@given(data=st.data())
def test_rows_are_those_that_zarr_reads(tmp_path: Path, data: st.DataObject) -> None:
    """Any rows of any array are bit-identical: partial last chunk, with and without checksums, both key encodings."""
    row = data.draw(st.lists(st.integers(1, 5), max_size=3).map(tuple))
    rows, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    dtype = data.draw(st.sampled_from(["uint8", "int8", "uint16", "int32", "uint32", "int64", "float32", "float64"]))
    array = make(
        tmp_path / "a",
        (rows, *row),
        (chunk, *row),
        dtype=dtype,
        compressors=data.draw(st.sampled_from([None, [Crc32cCodec()]])),
        chunk_key_encoding={"name": "default", "separator": data.draw(st.sampled_from("/."))},
    )
    start, stop = sorted((data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows))))
    found, expected = read(known(array), start, stop), np.asarray(array[start:stop])
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def damages() -> dict[str, Callable[[Path], None]]:
    """Return functions that damage or replace a chunk, by name."""

    def cut(file: Path) -> None:
        os.truncate(file, file.stat().st_size - 1)

    def empty(file: Path) -> None:
        os.truncate(file, 0)

    def longer(file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"\0")

    def doubled(file: Path) -> None:
        file.write_bytes(file.read_bytes() * 2)

    def folder(file: Path) -> None:
        file.unlink()
        file.mkdir()

    def pipe(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def link_to_folder(file: Path) -> None:
        file.unlink()
        file.symlink_to(file.parent)

    def link_to_nothing(file: Path) -> None:
        file.unlink()
        file.symlink_to("nothing")

    return {
        damage.__name__: damage
        for damage in (Path.unlink, cut, empty, longer, doubled, folder, pipe, link_to_folder, link_to_nothing)
    }


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("damage", damages())
def test_a_damaged_chunk_is_never_read(tmp_path: Path, damage: str, checksum: bool) -> None:
    """Whatever replaces a chunk, with or without a checksum, none of its rows is returned; other rows are."""
    array = make(tmp_path / "a", (20, 3), (8, 3), compressors=[Crc32cCodec()] if checksum else None)
    raw = known(array)
    damages()[damage](tmp_path / "a" / "c" / "1" / "0")
    for start, stop in ((8, 16), (9, 10), (0, 20), (15, 17)):
        assert read(raw, start, stop) is None
    assert read(raw, 0, 8) is not None
    assert read(raw, 16, 20) is not None


@pytest.mark.parametrize("damage", damages())
def test_errors_do_not_depend_on_the_fast_path(sample: Any, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """The error of a damaged chunk is the same with and without the fast path."""
    damages()[damage](sample.path / CHUNK)
    messages = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(archive_module, "raw_rows", lambda _: None)
        with pytest.raises(DamagedArchiveError, match=r"chunk c\.2\.0\.0 of array neuron/active") as error:
            open_archive(sample.path).read_rows(NAME, 3, 30)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> zarr.Array[Any]:
    """13 rows of three uint16, eight rows per chunk. Read-only for tests."""
    return make(tmp_path_factory.mktemp("whole") / "a", (13, 3), (8, 3), dtype="uint16")


@settings(deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_detected(whole: zarr.Array[Any], data: st.DataObject) -> None:
    """The checksum covers a whole chunk, whichever rows are read, including rows past the end of the array."""
    number = data.draw(st.integers(0, 1))
    raw = known(whole)
    file = raw.folder / "c" / str(number) / "0"
    content = file.read_bytes()
    changed, bit = bytearray(content), data.draw(st.integers(0, 8 * len(content) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    first, last = (0, 8) if number == 0 else (8, 13)
    start = data.draw(st.integers(first, last - 1))
    stop = data.draw(st.integers(start + 1, last))
    file.write_bytes(changed)
    try:
        assert read(raw, start, stop) is None
    finally:
        file.write_bytes(content)
    assert read(raw, start, stop) is not None


@settings(deadline=None)
@given(most=st.integers(1, 60), start=st.integers(0, 5), length=st.integers(0, 8))
def test_short_reads_are_continued(whole: zarr.Array[Any], most: int, start: int, length: int) -> None:
    """If the system returns fewer bytes than requested, reading continues from where it stopped."""
    preadv = os.preadv

    def part(descriptor: int, parts: list[Any], offset: int) -> int:
        sizes = np.cumsum([len(one) for one in parts])
        count = int(np.searchsorted(sizes, most, side="right"))
        if count:
            return preadv(descriptor, parts[:count], offset)
        return preadv(descriptor, [parts[0][:most]], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.os, "preadv", part)
        found = read(known(whole), start, start + length)
    assert found is not None
    assert (found == whole[start : start + length]).all()


def test_a_file_that_ends_early_or_fails_is_left_to_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that shrinks during a read, or a disk error, returns no rows, even without a checksum."""
    raw = known(make(tmp_path / "a", (20, 3), (8, 3), compressors=None))

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    for answer in (lambda *_: 0, fails):
        monkeypatch.setattr(module.os, "preadv", answer)
        assert read(raw, 0, 20) is None


OTHERS: dict[str, dict[str, Any]] = {
    "compressed": {"compressors": [ZstdCodec()]},
    "compressed and checked": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "checked twice": {"compressors": [Crc32cCodec(), Crc32cCodec()]},
    "sharded": {"shards": (16, 4)},
    "transposed": {"filters": [TransposeCodec(order=(1, 0))]},
    "big endian": {"dtype": "uint16", "serializer": BytesCodec(endian="big")},
    "truth values": {"dtype": "bool"},
    "strings": {"dtype": "str", "fill_value": ""},
    "old format": {"zarr_format": 2, "compressors": None},
    "chunks of partial rows": {"chunks": (8, 2)},
    "empty rows": {"shape": (20, 0), "chunks": (8, 1)},
}


@pytest.mark.filterwarnings("ignore")  # zarr's warnings on unusual arrays
@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_array_is_left_to_zarr(tmp_path: Path, kind: str) -> None:
    """Other codecs, orders, dtypes and grids than raw bytes of whole rows are left to zarr."""
    options = {"shape": (20, 4), "chunks": (8, 4), **OTHERS[kind]}
    array = make(tmp_path / "a", options.pop("shape"), options.pop("chunks"), **options)
    assert raw_rows(array) is None


def test_every_other_store_is_left_to_zarr(tmp_path: Path) -> None:
    """Arrays in memory, or in a store that may do more than a plain folder, are left to zarr."""

    class OtherStore(LocalStore):
        """A store that could do anything on a read."""

    make(tmp_path / "a", (20, 4), (8, 4))
    assert raw_rows(zarr.open_array(OtherStore(tmp_path / "a"), mode="r")) is None
    memory = zarr.create_array(MemoryStore(), shape=(20, 4), chunks=(8, 4), dtype="u1", compressors=None)
    assert raw_rows(memory) is None


def test_masks_of_an_archive_are_read_past_zarr(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks from our writer are read without zarr; compressed columns are not."""
    archive = open_archive(sample.path)
    assert raw_rows(archive.array("token/id")) is None
    monkeypatch.setattr(archive, "_read_plainly", None)
    packed = archive.read_active(5, 30)
    masks = np.unpackbits(packed, axis=-1, bitorder="little", count=archive.neurons)
    assert (masks.astype(bool) == sample.truth[5:30]).all()


def test_a_chunk_that_is_a_link_is_read(sample: Any) -> None:
    """An archive whose files are links, as some caches make them, reads the same."""
    expected = open_archive(sample.path).read_active(0, 30)
    file = sample.path / CHUNK
    file.rename(sample.path.parent / "elsewhere")
    file.symlink_to(sample.path.parent / "elsewhere")
    raw = known(open_archive(sample.path).array(NAME))
    assert (read(raw, 0, 30) == expected).all()


@pytest.mark.parametrize("name", [NAME, "token/id"])
def test_rows_are_read_into_the_callers_memory(sample: Any, name: str) -> None:
    """Both the fast path and zarr fill and return the caller's memory."""
    archive = open_archive(sample.path)
    expected = archive.read_rows(name, 3, 21)
    out = np.full_like(expected, 9)
    assert archive.read_rows(name, 3, 21, out) is out
    assert (out == expected).all()
    assert archive.read_rows(name, 4, 4, out[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("wrong", ["rows", "dtype", "gaps", "read-only"])
@pytest.mark.parametrize("name", [NAME, "token/id"])
def test_memory_that_does_not_fit_is_refused(sample: Any, name: str, wrong: str) -> None:
    """Memory of another dtype, shape or layout is refused: nothing is silently converted or truncated."""
    archive = open_archive(sample.path)
    right = archive.read_rows(name, 0, 10)
    out = {"rows": right[:9], "dtype": right.astype(np.uint64), "gaps": np.repeat(right, 2, axis=0)[::2]}.get(wrong)
    if out is None:
        out = right
        out.flags.writeable = False
    with pytest.raises(ValueError, match=rf"memory for 10 rows of {name} must be"):
        archive.read_rows(name, 0, 10, out)
