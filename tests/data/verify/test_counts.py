"""Archives of counts: sums over each instruction's rows instead of token rows and masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.schema import array_specs
from sparcom_data.schema.layout import COUNT_CHUNK_BYTES, choose_chunk_instructions, plan_layout
from sparcom_data.testing import random_attributes, write_random_archive

Columns = Callable[..., InstructionColumns]
SPECS = {spec.name: spec for spec in array_specs(random_attributes(2, 11).model, "count")}


def create(path: Path, columns: InstructionColumns, layers: int = 2, neurons: int = 11, **options: Any) -> None:
    """Create an archive of counts; instruction k has k + 1 prompt tokens."""
    layout = plan_layout([k + 1 for k in range(len(columns.id))], "prompt", 0)
    create_archive(path, random_attributes(layers, neurons, granularity="count"), columns, layout, **options)


def test_every_array_is_described(tmp_path: Path, columns: Columns) -> None:
    """Plain zarr finds exactly the schema's arrays, each as described: no token axis and no masks."""
    create(tmp_path / "a.zarr", columns(3))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.attrs["sparcom"]["capture"]["granularity"] == "count"  # type: ignore[index,call-overload]
    arrays = {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert set(arrays) == set(SPECS)
    assert {name.partition("/")[0] for name in SPECS} == {"instruction", "neuron"}
    for name, spec in SPECS.items():
        stored = json.loads((tmp_path / "a.zarr" / name / "zarr.json").read_text())
        assert stored["data_type"] == spec.dtype
        assert tuple(stored["dimension_names"]) == spec.dimensions
        assert arrays[name].attrs["description"] == spec.description
        assert arrays[name].attrs.get("unit") == spec.unit
    assert (arrays["neuron/count"].shape, arrays["neuron/count"].dtype) == ((3, 2, 11), np.uint32)
    assert arrays["neuron/count"].attrs["unit"] == "token"


def test_counts_lie_on_disk_as_the_writer_makes_them(tmp_path: Path, columns: Columns) -> None:
    """Counts are little-endian, Blosc and CRC32C encoded, fill value 0; chunks of whole instructions share a folder."""
    create(tmp_path / "a.zarr", columns(9), chunk_instructions=4)
    stored = json.loads((tmp_path / "a.zarr/neuron/count/zarr.json").read_text())
    names = [codec["name"] for codec in stored["codecs"]]
    assert names == ["bytes", "blosc", "crc32c"]
    assert stored["codecs"][0]["configuration"] == {"endian": "little"}
    blosc = stored["codecs"][1]["configuration"]
    assert {name: blosc[name] for name in ("typesize", "cname", "clevel", "shuffle")} == {
        "typesize": 4,
        "cname": "zstd",
        "clevel": 3,
        "shuffle": "shuffle",
    }
    assert stored["fill_value"] == 0
    assert stored["chunk_grid"]["configuration"]["chunk_shape"] == [4, 2, 11]
    array = zarr.open_array(tmp_path / "a.zarr/neuron/count", mode="r+")
    array[:] = 1
    files = {path.name for path in (tmp_path / "a.zarr/neuron/count").iterdir()}
    assert files == {"zarr.json", "c.0.0.0", "c.1.0.0", "c.2.0.0"}


@given(st.integers(1, 2**26), st.integers(0, 2**20))
def test_chunks_keep_their_bounds(count_bytes: int, instructions: int) -> None:
    """The instructions per chunk are a power of two within the target, at least one and at most the axis."""
    held = choose_chunk_instructions(count_bytes, instructions)
    assert 1 <= held <= max(1, instructions)
    assert held == 1 or held * count_bytes <= COUNT_CHUNK_BYTES
    if held < instructions:
        assert held.bit_count() == 1
        assert 2 * held * count_bytes > COUNT_CHUNK_BYTES


@pytest.mark.parametrize(("layers", "neurons", "held"), [(30, 1536, 16), (32, 11008, 2), (80, 28672, 1)])
def test_chunks_of_known_models(tmp_path: Path, columns: Columns, layers: int, neurons: int, held: int) -> None:
    """SmolLM2-135M, LLaMA-2-7B and LLaMA-2-70B get chunks of 16, 2 and 1 whole instructions."""
    create(tmp_path / "a.zarr", columns(40), layers, neurons)
    assert zarr.open_array(tmp_path / "a.zarr/neuron/count").chunks == (held, layers, neurons)
    assert open_archive(tmp_path / "a.zarr").chunk_instructions == held


def test_the_instruction_table_is_that_of_the_masks(sample: Any, counted: Any, tree: Any) -> None:
    """Archives of masks and counts from one run have byte-identical `instruction/` arrays, token_start included."""
    assert tree(counted.path / "instruction") == tree(sample.path / "instruction")
    starts = open_archive(counted.path).instructions.token_start
    assert starts.tolist() == open_archive(sample.path).instructions.token_start.tolist()
    assert starts[-1] > 0


def test_sizes_of_an_archive_of_counts(sample: Any, counted: Any) -> None:
    """Sizes equal those of the archive of masks; counts equal the sums over each instruction's rows."""
    archive, masks = open_archive(counted.path), open_archive(sample.path)
    assert (archive.granularity, masks.granularity) == ("count", "token")
    assert (archive.layers, archive.neurons, archive.neuron_bytes) == (masks.layers, masks.neurons, masks.neuron_bytes)
    assert archive.chunk_instructions == 4
    table = archive.instructions
    assert table.complete.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    counts = archive.read_counts(0, len(table))
    assert counts.dtype == np.uint32
    for index in table.complete:
        rows = slice(table.token_start[index], table.token_start[index] + table.token_length[index])
        np.testing.assert_array_equal(counts[index], sample.truth[rows].sum(axis=0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.integers(0, 10), st.integers(0, 10))
def test_any_instructions_equal_the_written_ones(counted: Any, one: int, other: int) -> None:
    """Instructions [start, stop), across chunk boundaries or empty, equal the truth and plain zarr's reads."""
    start, stop = sorted((one, other))
    counts = open_archive(counted.path).read_counts(start, stop)
    np.testing.assert_array_equal(counts, counted.truth[start:stop])
    np.testing.assert_array_equal(counts, zarr.open_array(counted.path / "neuron/count", mode="r")[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (4, 3), (0, 11), (11, 12)])
def test_instructions_outside_the_axis_are_refused(counted: Any, start: int, stop: int) -> None:
    """Instructions outside the axis raise IndexError, whereas numpy would silently truncate the slice."""
    with pytest.raises(IndexError, match=rf"\[{start}, {stop}\) are not within the 10"):
        open_archive(counted.path).read_counts(start, stop)


def test_a_missing_chunk_is_damage_and_not_zeros(counted: Any) -> None:
    """Reads that need a missing chunk raise an error that names it; other instructions can still be read."""
    (counted.path / "neuron/count/c.1.0.0").unlink()
    archive = open_archive(counted.path)
    for start, stop in ((0, 10), (4, 5), (7, 8)):
        with pytest.raises(DamagedArchiveError, match=r"chunk c\.1\.0\.0 of array neuron/count .* is missing"):
            archive.read_counts(start, stop)
    np.testing.assert_array_equal(archive.read_counts(0, 4), counted.truth[:4])
    np.testing.assert_array_equal(archive.read_counts(8, 10), counted.truth[8:])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_any_flipped_bit_is_damage(counted: Any, data: st.DataObject) -> None:
    """A flipped bit anywhere in a chunk, its checksum included, raises an error that names array and chunk."""
    file = counted.path / "neuron/count/c.1.0.0"
    whole = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
        with pytest.raises(DamagedArchiveError, match=r"chunk c\.1\.0\.0 of array neuron/count .* cannot be read"):
            open_archive(counted.path).read_counts(0, 10)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("content", [b"", b"abc", b"abcd", b"x" * 75])
def test_a_cut_chunk_is_damage(counted: Any, content: bytes) -> None:
    """A chunk of the wrong length, even an empty one, is refused like any other damage."""
    (counted.path / "neuron/count/c.0.0.0").write_bytes(content)
    with pytest.raises(DamagedArchiveError, match=r"chunk c\.0\.0\.0 of array neuron/count"):
        open_archive(counted.path).read_counts(0, 1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda archive: archive.read_active(0, 1),
        lambda archive: archive.read_tokens(0, 1),
        lambda archive: archive.tokens,
        lambda archive: archive.chunk_tokens,
    ],
)
def test_rows_cannot_be_read_from_counts(counted: Any, ask: Callable[[Any], object]) -> None:
    """An archive of counts refuses to read rows; the error states its contents and the remedy."""
    with pytest.raises(UnsupportedArchiveError, match=r"needs granularity 'token'; .* has 'count': it holds one count"):
        ask(open_archive(counted.path))


@pytest.mark.parametrize("ask", [lambda archive: archive.read_counts(0, 1), lambda archive: archive.chunk_instructions])
def test_counts_cannot_be_read_from_masks(sample: Any, ask: Callable[[Any], object]) -> None:
    """An archive of masks refuses to read counts; the error states its contents and the remedy."""
    with pytest.raises(UnsupportedArchiveError, match=r"needs granularity 'count'; .* has 'token': it holds one mask"):
        ask(open_archive(sample.path))


def test_a_commit_writes_no_token_rows(tmp_path: Path, columns: Columns, writes: Any) -> None:
    """Lengths, responses and states are committed, states last; ids and positions are not stored."""
    path = tmp_path / "a.zarr"
    create(path, columns(3))
    writes.restart()
    rows = np.arange(3, dtype=np.int32)
    ArchiveCommitter(path).complete([CompletedInstruction(2, 3, rows + 7, rows, "answer")])
    assert [item.parent.parent.name for item in writes.paths] == ["response", "token_length", "state"]
    assert not (path / "token").exists()
    table = open_archive(path).instructions
    assert (table.token_length.tolist(), table.state.tolist()) == ([0, 0, 3], [0, 0, 1])


@pytest.mark.parametrize("count", [0, 1])
def test_archives_without_counts_are_valid(tmp_path: Path, columns: Columns, count: int) -> None:
    """An archive without instructions, or of a model without dense layers, opens everywhere."""
    create(tmp_path / "a.zarr", columns(count))
    assert open_archive(tmp_path / "a.zarr").read_counts(0, 0).shape == (0, 2, 11)
    with xarray.open_datatree(tmp_path / "a.zarr", engine="zarr") as data:
        assert data["neuron/count"].sizes == {"instruction": count, "layer": 2, "neuron": 11}
    create(tmp_path / "b.zarr", columns(count), 0, 0)
    assert "neuron" not in zarr.open_group(tmp_path / "b.zarr", mode="r")


def test_xarray_reads_the_counts(counted: Any) -> None:
    """xarray reads counts by dimension names, and those of a category by its label."""
    with xarray.open_datatree(counted.path, engine="zarr") as data:
        counts = data["neuron/count"]
        assert counts.dims == ("instruction", "layer", "neuron")
        np.testing.assert_array_equal(counts.values, counted.truth)
        code = counts.isel(instruction=data["instruction/category"].values == "CODE")
        np.testing.assert_array_equal(code.sum("instruction").values, counted.truth[5:].sum(axis=0))


@settings(deadline=None, max_examples=10)
@given(layers=st.integers(1, 4), neurons=st.integers(1, 40), chunk=st.integers(1, 12), seed=st.integers(0, 99))
def test_any_size_is_kept(
    tmp_path_factory: pytest.TempPathFactory, layers: int, neurons: int, chunk: int, seed: int
) -> None:
    """For any layers, neurons and chunks, the counts are read back and equal sums over the same masks."""
    folder, size = tmp_path_factory.mktemp("sizes"), {"layers": layers, "neurons": neurons, "seed": seed}
    truth = write_random_archive(folder / "c.zarr", granularity="count", chunk_instructions=chunk, **size)  # type: ignore[arg-type]
    masks = write_random_archive(folder / "m.zarr", **size)  # type: ignore[arg-type]
    archive, starts = open_archive(folder / "c.zarr"), open_archive(folder / "m.zarr").instructions.token_start
    np.testing.assert_array_equal(archive.read_counts(0, 10), truth)
    np.testing.assert_array_equal(truth, np.add.reduceat(masks, starts, axis=0, dtype=np.uint32))
