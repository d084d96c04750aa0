"""Origins of tokens: writing, verifying, and archives without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.layout import plan_layout
from sparcom_data.storage import DurableStore
from sparcom_data.testing import fill_array, random_attributes
from sparcom_data.verify import verify_archive

ORIGINS = ([1, 0, 0, 1], [2, 0], [255, 255, 255])


def write(path: Path, granularity: Any = "token", positions: Any = "prompt") -> None:
    """Three complete instructions with these origins; those of the last are unknown."""
    reserved = 0 if positions == "prompt" else 2
    layout = plan_layout([len(origin) for origin in ORIGINS], positions, reserved)
    names = ["a", "b", "c"]
    origin = [np.array(one, dtype=np.uint8) for one in ORIGINS]
    columns = InstructionColumns(names, names, names, names, ["", "", ""], origin)
    attributes = random_attributes(2, 8, positions=positions, max_tokens=reserved, granularity=granularity)
    create_archive(path, attributes, columns, layout)
    array = "neuron/count" if granularity == "count" else "neuron/active"
    fill_array(path, array, np.zeros(zarr.open_group(path, mode="r")[array].shape, dtype=np.uint8))  # type: ignore[union-attr]
    committer = ArchiveCommitter(path)
    for k in range(3):
        own = layout.first_position[k] + np.arange(layout.capacity[k], dtype=np.int32)
        committer.complete([CompletedInstruction(k, int(layout.token_start[k]), np.ones_like(own), own)])
    committer.close()


def wrong(path: Path) -> list[str]:
    """Return the findings of the check of origins."""
    return [
        finding
        for check in verify_archive(open_archive(path), None)
        if check.name == "origins"
        for finding in check.findings
    ]


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_a_valid_archive_passes(tmp_path: Path, granularity: str, positions: str) -> None:
    """Lengths by origin are columns, -1 if any origin of the prompt is unknown."""
    write(tmp_path / "a.zarr", granularity, positions)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group["instruction/template_length"][:].tolist() == [2, 0, -1]
    assert group["instruction/special_length"][:].tolist() == [0, 1, -1]
    assert "origins" in [check.name for check in verify_archive(open_archive(tmp_path / "a.zarr"), None)]
    assert wrong(tmp_path / "a.zarr") == []


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("token/origin", 1, 1, "'a': token/origin must hold [2, 0] template and special tokens"),
        ("token/origin", 1, 3, "'a': token/origin must hold [2, 0] template and special tokens"),
        ("token/origin", 1, 7, "'a': token/origin must hold [2, 0] template and special tokens"),
        ("token/origin", 6, 0, ""),
        ("token/origin", slice(6, 9), 0, "'c': token/origin must hold [-1, -1] template"),
        ("instruction/template_length", 0, 5, "'a': template_length 5 and special_length 0 do not fit 4"),
        ("instruction/special_length", 2, 0, "'c': template_length -1 and special_length 0 do not fit"),
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, index: Any, value: int, message: str) -> None:
    """Invalid origins, origins impossible in a prompt, and wrong sums are found."""
    write(tmp_path / "a.zarr")
    array = zarr.open_group(DurableStore(tmp_path / "a.zarr"), mode="r+", use_consolidated=False)[name]
    array[index] = value  # type: ignore[index]
    found = wrong(tmp_path / "a.zarr")
    assert any(message in one for one in found) if message else found == []


def test_columns_of_other_lengths_are_refused() -> None:
    """The origins of all instructions must be given, or of none."""
    with pytest.raises(InvalidInputError, match="same length"):
        InstructionColumns(["a"], [""], [""], [""], [""], [])
    assert InstructionColumns(["a"], [""], [""], [""], [""]).origin is None


def test_archives_without_origins_are_valid() -> None:
    """The golden archives lack the arrays and are still read and verified."""
    for name in ("v1", "v1-count"):
        archive = open_archive(Path(__file__).parents[1] / "golden" / f"{name}.zarr")
        assert not archive.knows_origins
        assert archive.attributes.warnings == []
        assert "origins" not in [check.name for check in verify_archive(archive, None)]
