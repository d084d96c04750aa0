"""A new archive exists whole or not at all, and any Zarr reader can read it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_data import create as create_module
from sparcom_data import storage
from sparcom_data.archive import open_archive
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import ArchiveExistsError, InvalidInputError, StorageError
from sparcom_data.schema import INSTRUCTION_ARRAYS, NEURON_ACTIVE, TOKEN_ARRAYS
from sparcom_data.schema.layout import plan_layout
from sparcom_data.storage import DurableStore
from sparcom_data.testing import random_attributes

Tree = Callable[[Path], dict[str, bytes]]
Columns = Callable[..., InstructionColumns]
SPECS = {spec.name: spec for spec in (*INSTRUCTION_ARRAYS, *TOKEN_ARRAYS, NEURON_ACTIVE)}


def create(path: Path, columns: InstructionColumns, **options: Any) -> None:
    """Instruction k has k + 1 prompt tokens; two layers of eleven neurons."""
    layout = plan_layout([k + 1 for k in range(len(columns.id))], "prompt", 0, [not error for error in columns.error])
    create_archive(path, random_attributes(2, 11), columns, layout, **options)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_existing_names_are_refused(tmp_path: Path, columns: Columns, tree: Tree, kind: str) -> None:
    """If anything has the name already, creation is refused and leaves it untouched."""
    path = tmp_path / "a.zarr"
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "zarr.json").write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(ArchiveExistsError, match=r"a\.zarr exists"):
        create(path, columns(2))
    assert tree(tmp_path) == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.zarr"]


def test_a_failure_at_any_write_leaves_nothing(tmp_path: Path, columns: Columns, writes: Any) -> None:
    """Whichever write fails, no archive or part of one is left, and a retry succeeds."""
    create(tmp_path / "whole.zarr", columns(2))
    count = len(writes.paths)
    assert count >= 14 + 10, "at least the metadata of root and arrays, and ten columns"
    for step in [0, 1, 2, count // 3, count // 2, count - 2, count - 1]:
        writes.restart(fail_at=step)
        with pytest.raises(StorageError, match=r"No space left on device") as caught:
            create(tmp_path / "b.zarr", columns(2))
        assert ".partial" not in str(caught.value)
        assert [item.name for item in tmp_path.iterdir()] == ["whole.zarr"]
    writes.restart()
    create(tmp_path / "b.zarr", columns(2))
    assert len(open_archive(tmp_path / "b.zarr").instructions) == 2


def test_writes_that_outlive_a_failure_leave_nothing(
    tmp_path: Path, columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr raises the first failure while other chunks of the array are still being written."""
    monkeypatch.setattr(create_module, "STRING_CHUNK", 1)
    real, late = storage.write_durably, threading.Event()

    def write(path: Path, parts: Any) -> None:
        if path.parts[-3:] == ("id", "c", "0"):
            raise StorageError("No space left on device")
        if path.parts[-3:-1] == ("id", "c"):
            late.set()
            time.sleep(0.2)
        real(path, parts)

    monkeypatch.setattr(storage, "write_durably", write)
    with pytest.raises(StorageError, match="No space left on device"):
        create(tmp_path / "b.zarr", columns(40))
    assert late.is_set()
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path, columns: Columns, tree: Tree) -> None:
    """A file in place of a folder, and a name that is too long, are refused with the reason."""
    (tmp_path / "file").write_bytes(b"precious")
    for path in (tmp_path / "file" / "a.zarr", tmp_path / ("n" * 300)):
        with pytest.raises(StorageError, match="errno"):
            create(path, columns(1))
    assert tree(tmp_path) == {"file": b"precious"}


def test_every_array_is_described(tmp_path: Path, columns: Columns) -> None:
    """Plain zarr finds exactly the schema's arrays, each with its dtype, dimensions, fill, description and unit."""
    create(tmp_path / "a.zarr", columns(3))
    arrays = dict(zarr.open_group(tmp_path / "a.zarr", mode="r").members(max_depth=None))
    assert {name for name, node in arrays.items() if isinstance(node, zarr.Array)} == set(SPECS)
    for name, spec in SPECS.items():
        array = arrays[name]
        assert isinstance(array, zarr.Array)
        stored = json.loads((tmp_path / "a.zarr" / name / "zarr.json").read_text())
        assert stored["data_type"] == spec.dtype
        assert tuple(stored["dimension_names"]) == spec.dimensions
        assert stored["fill_value"] == spec.fill_value
        assert array.attrs["description"] == spec.description
        assert array.attrs.get("unit") == spec.unit
        assert stored["codecs"][-1]["name"] == "crc32c", "the checksum covers the stored bytes"
    masks = arrays["neuron/active"]
    assert isinstance(masks, zarr.Array)
    assert (masks.shape, masks.attrs["size"]) == ((6, 2, 2), 11)
    assert [codec["name"] for codec in stored["codecs"]] == ["bytes", "crc32c"], "masks are not compressed"


def test_xarray_opens_it_with_named_dimensions(tmp_path: Path, columns: Columns) -> None:
    """xarray's tree has named dimensions, and keeps -1 and the stored dtypes."""
    create(tmp_path / "a.zarr", columns(3))
    with xarray.open_datatree(tmp_path / "a.zarr", engine="zarr") as data:
        assert data["neuron/active"].sizes == {"token": 6, "layer": 2, "neuron_byte": 2}
        assert data["instruction"].sizes == {"instruction": 3}
        assert data["token/id"].dtype == np.int32
        np.testing.assert_array_equal(data["token/id"], np.full(6, -1))
        np.testing.assert_array_equal(data["instruction/token_start"], [0, 1, 3])
        np.testing.assert_array_equal(data["instruction/prompt_length"], [1, 2, 3])
        assert list(data["instruction/id"].values) == ["i0", "i1", "i2"]
        assert data["instruction/token_start"].attrs["unit"] == "row"


def test_readers_that_cannot_list_find_every_array(tmp_path: Path, columns: Columns) -> None:
    """The root's metadata holds that of every array, so HTTP readers need no listing."""
    create(tmp_path / "a.zarr", columns(3))
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    inside = root["consolidated_metadata"]["metadata"]
    for name in SPECS:
        assert inside[name] == json.loads((tmp_path / "a.zarr" / name / "zarr.json").read_text())


def test_the_start_of_an_archive(tmp_path: Path, columns: Columns) -> None:
    """Initially, runnable instructions are pending; the others are failed with their reason and no rows."""
    create(tmp_path / "a.zarr", columns(3, error=["", "too long", ""]))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.attrs["sparcom"]["state"] == "open"  # type: ignore[index,call-overload]
    np.testing.assert_array_equal(group["instruction/state"][:], [0, 2, 0])
    np.testing.assert_array_equal(group["instruction/token_start"][:], [0, 1, 1])
    np.testing.assert_array_equal(group["instruction/token_length"][:], [0, 0, 0])
    assert list(group["instruction/error"][:]) == ["", "too long", ""]
    assert not list((tmp_path / "a.zarr" / "neuron").rglob("c")), "no mask exists before it is computed"


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_text_of_any_script_is_kept(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Plain zarr reads any Unicode string, including NUL and emoji, back unchanged and in its place."""
    path = tmp_path_factory.mktemp("strings") / "a.zarr"
    count = len(texts)
    create(path, InstructionColumns([f"{k}é" for k in range(count)], texts[::-1], texts, texts, [""] * count))
    group = zarr.open_group(path, mode="r")
    for name, expected in {"text": texts, "source": texts, "category": texts[::-1]}.items():
        assert list(group[f"instruction/{name}"][:]) == expected


@pytest.mark.parametrize("error", [[], ["too long"]])
def test_archives_without_rows_are_valid(tmp_path: Path, columns: Columns, error: list[str]) -> None:
    """Without any instruction, or without a runnable one, the archive has no rows and still opens everywhere."""
    create(tmp_path / "a.zarr", columns(len(error), error=error))
    archive = open_archive(tmp_path / "a.zarr")
    assert (len(archive.instructions), archive.tokens) == (len(error), 0)
    assert archive.read_active(0, 0).shape == (0, 2, 2)
    with xarray.open_datatree(tmp_path / "a.zarr", engine="zarr") as data:
        assert data["neuron/active"].sizes["token"] == 0


def test_a_model_without_dense_layers_has_no_masks(tmp_path: Path, columns: Columns) -> None:
    """Without dense FFN layers the array is omitted, not created with an axis of length 0."""
    attributes = random_attributes(0, 0)
    create_archive(tmp_path / "a.zarr", attributes, columns(1), plan_layout([4], "prompt", 0))
    assert "neuron" not in zarr.open_group(tmp_path / "a.zarr", mode="r")


def test_columns_of_different_length_are_refused() -> None:
    """All columns describe the same instructions, so they must have the same length."""
    with pytest.raises(InvalidInputError, match=r"same length; they have \[1, 2\]"):
        InstructionColumns(["a", "b"], ["", ""], ["", ""], ["", ""], [""])


def test_chunks_follow_the_request_or_the_default(tmp_path: Path, columns: Columns) -> None:
    """Chunks have the requested rows, limited to the axis, and all layers and neurons."""
    for asked, expected in ((4, 4), (1000, 6), (None, 6)):
        path = tmp_path / f"{asked}.zarr"
        create(path, columns(3), chunk_tokens=asked)
        assert zarr.open_array(DurableStore(path / "neuron" / "active")).chunks == (expected, 2, 2)
