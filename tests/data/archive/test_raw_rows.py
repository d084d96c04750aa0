"""Rows read past zarr are zarr's, or zarr is asked."""

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
    """An array of random numbers, opened for reading; one CRC32C a chunk unless told otherwise."""
    shutil.rmtree(path, ignore_errors=True)
    given_: dict[str, Any] = {"dtype": "uint8", "compressors": [Crc32cCodec()], "fill_value": 7, **options}
    array = zarr.create_array(LocalStore(path), shape=shape, chunks=chunks, **given_)
    if array.dtype.kind in "iufb":
        values = np.random.default_rng(0).integers(0, 256, size=shape).astype(array.dtype)
        array.with_config({"write_empty_chunks": True})[...] = values
    return zarr.open_array(LocalStore(path), mode="r")


def known(array: zarr.Array[Any]) -> RawRows:
    """The fast path, which must be taken."""
    raw = raw_rows(array)
    assert raw is not None
    return raw


def read(raw: RawRows, start: int, stop: int) -> NDArray[Any] | None:
    """Rows [start, stop), or None where zarr must be asked."""
    out = np.full((stop - start, *raw.row), 3, dtype=raw.dtype)
    return out if raw.read_into(out, start) else None


@SETTINGS
@given(data=st.data())
def test_rows_are_those_that_zarr_reads(tmp_path: Path, data: st.DataObject) -> None:
    """Any rows of any array, the last chunk a part, with and without checksums, keys of either kind, to the bit."""
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
    """Ways in which something else stands in the place of a chunk."""

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
        way.__name__: way
        for way in (Path.unlink, cut, empty, longer, doubled, folder, pipe, link_to_folder, link_to_nothing)
    }


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("way", damages())
def test_a_chunk_that_is_not_whole_is_never_read(tmp_path: Path, way: str, checksum: bool) -> None:
    """Whatever stands in a chunk's place, with a checksum or without: no row of it is given, those beside it are."""
    array = make(tmp_path / "a", (20, 3), (8, 3), compressors=[Crc32cCodec()] if checksum else None)
    raw = known(array)
    damages()[way](tmp_path / "a" / "c" / "1" / "0")
    for start, stop in ((8, 16), (9, 10), (0, 20), (15, 17)):
        assert read(raw, start, stop) is None
    assert read(raw, 0, 8) is not None
    assert read(raw, 16, 20) is not None


@pytest.mark.parametrize("way", damages())
def test_an_archive_says_of_damage_what_it_said_before(sample: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The error of a damaged chunk is the same sentence with the fast path and without."""
    damages()[way](sample.path / CHUNK)
    said = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(archive_module, "raw_rows", lambda _: None)
        with pytest.raises(DamagedArchiveError, match=r"chunk c\.2\.0\.0 of array neuron/active") as error:
            open_archive(sample.path).read_rows(NAME, 3, 30)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> zarr.Array[Any]:
    """13 rows of three uint16, eight rows a chunk. To be left as it is."""
    return make(tmp_path_factory.mktemp("whole") / "a", (13, 3), (8, 3), dtype="uint16")


@settings(deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_seen(whole: zarr.Array[Any], data: st.DataObject) -> None:
    """The checksum covers all of a chunk, whichever rows of it are asked for, those past the last row included."""
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
def test_a_read_that_gives_less_goes_on(whole: zarr.Array[Any], most: int, start: int, length: int) -> None:
    """The operating system may give fewer bytes than asked for; the rest is asked for, from where it stopped."""
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
    """A file cut while it is read, or a disk's error, gives no rows, also where no checksum would tell."""
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
    "part of a row a chunk": {"chunks": (8, 2)},
    "nothing in a row": {"shape": (20, 0), "chunks": (8, 1)},
}


@pytest.mark.filterwarnings("ignore")  # zarr's, of what these arrays are made of
@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_array_is_left_to_zarr(tmp_path: Path, kind: str) -> None:
    """Any codec, order, type or grid that is not just bytes of whole rows is not taken."""
    options = {"shape": (20, 4), "chunks": (8, 4), **OTHERS[kind]}
    array = make(tmp_path / "a", options.pop("shape"), options.pop("chunks"), **options)
    assert raw_rows(array) is None


def test_every_other_store_is_left_to_zarr(tmp_path: Path) -> None:
    """Arrays in memory, or in a store that may do more than a folder, are not taken."""

    class OtherStore(LocalStore):
        """One that could do anything when it reads."""

    make(tmp_path / "a", (20, 4), (8, 4))
    assert raw_rows(zarr.open_array(OtherStore(tmp_path / "a"), mode="r")) is None
    memory = zarr.create_array(MemoryStore(), shape=(20, 4), chunks=(8, 4), dtype="u1", compressors=None)
    assert raw_rows(memory) is None


def test_masks_of_an_archive_are_read_past_zarr(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our writer makes is taken: masks without a call of zarr's; the compressed columns are not."""
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
def test_rows_go_where_the_caller_wants_them(sample: Any, name: str) -> None:
    """Memory that is given is filled and returned, by the fast path and by zarr alike."""
    archive = open_archive(sample.path)
    expected = archive.read_rows(name, 3, 21)
    out = np.full_like(expected, 9)
    assert archive.read_rows(name, 3, 21, out) is out
    assert (out == expected).all()
    assert archive.read_rows(name, 4, 4, out[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("wrong", ["rows", "dtype", "gaps", "read-only"])
@pytest.mark.parametrize("name", [NAME, "token/id"])
def test_memory_that_does_not_fit_is_refused(sample: Any, name: str, wrong: str) -> None:
    """Nothing is converted or cut without a word."""
    archive = open_archive(sample.path)
    right = archive.read_rows(name, 0, 10)
    out = {"rows": right[:9], "dtype": right.astype(np.uint64), "gaps": np.repeat(right, 2, axis=0)[::2]}.get(wrong)
    if out is None:
        out = right
        out.flags.writeable = False
    with pytest.raises(ValueError, match=rf"memory for 10 rows of {name} must be"):
        archive.read_rows(name, 0, 10, out)
