"""Reading returns the true values, or an error that names array and chunk; never zeros in place of data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_data.archive import Archive, open_archive
from sparcom_data.describe import describe_states
from sparcom_data.errors import ArchiveNotFoundError, DamagedArchiveError, NewerFormatError, NotAnArchiveError
from sparcom_data.schema import INSTRUCTION_ARRAYS


def change_root(path: Path, change: Any) -> None:
    """Edit the JSON of the root group."""
    file = path / "zarr.json"
    root = json.loads(file.read_text())
    change(root)
    file.write_text(json.dumps(root))


def test_sizes_of_an_archive(sample: Any) -> None:
    """Sizes, attributes and columns equal those written."""
    archive = open_archive(sample.path)
    tokens, layers, neurons = sample.truth.shape
    assert (archive.tokens, archive.layers, archive.neurons) == (tokens, layers, neurons)
    assert (archive.neuron_bytes, archive.chunk_tokens, archive.path) == (3, 8, str(sample.path))
    table = archive.instructions
    assert table.id == [f"i{k:03d}" for k in range(10)]
    assert table.category == ["CLS"] * 5 + ["CODE"] * 5
    assert table.source == ["random"] * 10
    assert table.complete.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert archive.strings("text") == [f"text {k}" for k in range(10)]
    assert archive.strings("error")[3] == "failed on purpose"
    assert describe_states(table.state) == {"pending": 0, "complete": 9, "failed": 1, "cancelled": 0}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.integers(0, 80), st.integers(0, 80))
def test_any_rows_equal_the_written_ones(sample: Any, one: int, other: int) -> None:
    """Rows [start, stop), across chunk boundaries or empty, equal the truth and plain zarr's reads."""
    archive = open_archive(sample.path)
    start, stop = sorted(min(place, archive.tokens) for place in (one, other))
    packed = archive.read_active(start, stop)
    unpacked = np.unpackbits(packed, axis=-1, bitorder="little", count=archive.neurons)
    np.testing.assert_array_equal(unpacked.astype(bool), sample.truth[start:stop])
    ids, positions = archive.read_tokens(start, stop)
    plain = zarr.open_group(sample.path, mode="r")
    np.testing.assert_array_equal(ids, plain["token/id"][start:stop])
    np.testing.assert_array_equal(positions, plain["token/position"][start:stop])
    assert (packed.dtype, ids.dtype, positions.dtype) == (np.uint8, np.int32, np.int32)


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (4, 3), (0, 10_000), (10_000, 10_001)])
def test_rows_outside_the_axis_are_refused(sample: Any, start: int, stop: int) -> None:
    """Rows outside the axis raise IndexError, whereas numpy would silently truncate the slice."""
    archive = open_archive(sample.path)
    for read in (archive.read_active, archive.read_tokens):
        with pytest.raises(IndexError, match=rf"rows \[{start}, {stop}\) are not within"):
            read(start, stop)


@pytest.mark.parametrize("chunk", ["0", "2", "7"])
def test_a_missing_chunk_is_damage_and_not_zeros(sample: Any, chunk: str) -> None:
    """Reads that need a missing chunk raise an error that names it; other rows can still be read."""
    archive = open_archive(sample.path)
    first = int(chunk) * 8
    (sample.path / f"neuron/active/c.{chunk}.0.0").unlink()
    last = min(first + 8, archive.tokens)
    for start, stop in ((0, archive.tokens), (first, first + 1), (last - 1, last)):
        with pytest.raises(DamagedArchiveError, match=rf"chunk c.{chunk}.0.0 of array neuron/active .* is missing"):
            archive.read_active(start, stop)
    archive.read_active(last, archive.tokens)
    archive.read_active(0, first)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_any_flipped_bit_is_damage(sample: Any, data: st.DataObject) -> None:
    """A flipped bit anywhere in a chunk, its checksum included, raises an error that names array and chunk."""
    file = sample.path / "neuron/active/c.3.0.0"
    whole = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
        for start, stop in ((24, 32), (0, 40), (31, 33)):
            with pytest.raises(DamagedArchiveError, match=r"chunk c.3.0.0 of array neuron/active .* cannot be read"):
                open_archive(sample.path).read_active(start, stop)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("content", [b"", b"abc", b"abcd", b"x" * 75, b"x" * 77])
def test_a_cut_chunk_is_damage(sample: Any, content: bytes) -> None:
    """A chunk of the wrong length, even an empty one, is refused like any other damage."""
    (sample.path / "neuron/active/c.0.0.0").write_bytes(content)
    with pytest.raises(DamagedArchiveError, match=r"chunk c\.0\.0\.0 of array neuron/active"):
        open_archive(sample.path).read_active(0, 1)


@pytest.mark.parametrize("spec", INSTRUCTION_ARRAYS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_damage_in_a_column_names_the_column(sample: Any, spec: Any, damage: str) -> None:
    """Every column of the instruction table is checked like the masks."""
    file = sample.path / spec.name / "c" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.unlink()
    if damage == "flipped":
        file.write_bytes(content)
    with pytest.raises(DamagedArchiveError, match=f"chunk c/0 of array {spec.name}"):
        open_archive(sample.path).column(spec.name.removeprefix("instruction/"))


def test_damage_in_token_rows_names_the_array(sample: Any) -> None:
    """Token ids and positions are checked too."""
    (sample.path / "token/position/c/0").unlink()
    with pytest.raises(DamagedArchiveError, match=r"chunk c/0 of array token/position .* is missing"):
        open_archive(sample.path).read_tokens(0, 3)


def test_a_missing_path_is_reported(tmp_path: Path) -> None:
    """An empty path raises ArchiveNotFoundError, not NotAnArchiveError."""
    with pytest.raises(ArchiveNotFoundError, match="there is no archive at"):
        open_archive(tmp_path / "none.zarr")


def test_files_and_folders_that_are_not_archives(tmp_path: Path) -> None:
    """A file, an empty folder, an array and a foreign group are not taken for archives."""
    (tmp_path / "file.zarr").write_bytes(b"PK")
    (tmp_path / "empty.zarr").mkdir()
    zarr.create_array(tmp_path / "array.zarr", shape=(2,), dtype="u1")
    zarr.create_group(tmp_path / "group.zarr", attributes={"other": 1})
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    for name in ("file", "empty", "array", "group", "old"):
        with pytest.raises(NotAnArchiveError, match=rf"{name}\.zarr"):
            open_archive(tmp_path / f"{name}.zarr")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"7", b"\xff\xfe", b'{"zarr_format": 9}'])
def test_damaged_root_metadata_is_refused(sample: Any, content: bytes) -> None:
    """Whatever replaces the root's metadata, the error is one sentence without a traceback of zarr."""
    (sample.path / "zarr.json").write_bytes(content)
    with pytest.raises(NotAnArchiveError, match=r"sample\.zarr"):
        open_archive(sample.path)


def test_a_newer_archive_suggests_an_upgrade(sample: Any) -> None:
    """An archive of a later version is refused before any of it is read."""
    change_root(sample.path, lambda root: root["attributes"]["sparcom"].update(format_version=2))
    with pytest.raises(NewerFormatError, match="has format 2"):
        open_archive(sample.path)


@pytest.mark.parametrize("what", ["removed", "group"])
def test_a_missing_array_is_named(sample: Any, what: str) -> None:
    """The error names an array that is missing or replaced by a group."""
    shutil.rmtree(sample.path / "token/id")
    change_root(sample.path, lambda root: root.pop("consolidated_metadata"))
    if what == "group":
        zarr.open_group(sample.path, mode="r+").create_group("token/id")
    with pytest.raises(NotAnArchiveError, match="token/id"):
        open_archive(sample.path).read_tokens(0, 1)


def test_archives_without_consolidated_metadata_are_read(sample: Any) -> None:
    """Consolidated metadata serves readers over HTTP; a local archive reads the same without it."""
    whole = open_archive(sample.path).instructions
    change_root(sample.path, lambda root: root.pop("consolidated_metadata"))
    archive: Archive = open_archive(sample.path)
    assert archive.instructions.id == whole.id
    np.testing.assert_array_equal(archive.instructions.token_start, whole.token_start)
