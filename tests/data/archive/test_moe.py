"""Archives of MoE models: arrays, sizes, chunks of several writers, reading and checking."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError
from sparcom_data.schema import captured_arrays
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, MoeInfo
from sparcom_data.testing import MoeTruth, fill_array, random_attributes, write_random_moe_archive
from sparcom_data.verify import Check, verify_archive

Columns = Callable[..., InstructionColumns]
QWEN = MoeInfo(layer_ids=list(range(24)), experts=60, experts_per_token=4, neurons=1408, shared_neurons=5632)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MoeTruth]:
    """Read-only for tests. Number 3 failed; two MoE layers of six experts, one dense layer."""
    path = tmp_path_factory.mktemp("moe") / "sample.zarr"
    return path, write_random_moe_archive(path, failed=(3,))


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, MoeTruth]:
    """Copy for tests that damage it."""
    return tmp_path / "a.zarr", write_random_moe_archive(tmp_path / "a.zarr", failed=(3,))


def findings(checks: list[Check]) -> dict[str, list[str]]:
    return {check.name: check.findings for check in checks if check.findings}


def test_one_token_of_qwen_has_the_documented_size(tmp_path: Path, columns: Columns) -> None:
    """Bytes before compression: masks of four experts and the shared ones in 24 layers, six bytes per top-k expert."""
    attributes = random_attributes(0, 0, moe=QWEN)
    create_archive(tmp_path / "a.zarr", attributes, columns(1), plan_layout([1], "prompt", 0))
    sizes = {"expert_neuron": 0, "shared_expert_neuron": 0, "router": 0}
    for item in captured_arrays(attributes.model, "token"):
        fill_array(tmp_path / "a.zarr", item.name, np.zeros((1, *item.row), dtype=item.spec.dtype))
        (chunk,) = (tmp_path / "a.zarr" / item.name).glob("c.*")
        sizes[item.component] += chunk.stat().st_size - 4  # the checksum
    assert sizes == {
        "expert_neuron": 24 * 4 * (1408 // 8),
        "shared_expert_neuron": 24 * (5632 // 8),
        "router": 24 * 4 * 6,
    }


@pytest.mark.parametrize(("dense", "shared"), [(1, 20), (0, 0)])
def test_arrays_depend_on_the_model(tmp_path: Path, dense: int, shared: int) -> None:
    """Only components of the model have arrays, and the attributes list them."""
    write_random_moe_archive(tmp_path / "a.zarr", dense_layers=dense, shared_neurons=shared, per_category=2)
    archive = open_archive(tmp_path / "a.zarr")
    names = {name.split("/")[0] for name, _ in zarr.open_group(tmp_path / "a.zarr", mode="r").arrays()}
    groups = {name for name, _ in zarr.open_group(tmp_path / "a.zarr", mode="r").groups()} | names
    expected = (
        {"router", "expert_neuron"} | ({"neuron"} if dense else set()) | ({"shared_expert_neuron"} if shared else set())
    )
    assert groups == expected | {"instruction", "token"}
    assert set(archive.components) == set(archive.attributes.capture.components) == expected
    assert findings(verify_archive(archive, None)) == {}
    if not dense:
        with pytest.raises(UnsupportedArchiveError, match=r"needs the component 'neuron'; .* has 'router'"):
            archive.read_active(0, 1)


def test_our_reader_returns_the_written_values(moe: tuple[Path, MoeTruth]) -> None:
    """Reads return the written routes and masks of routed experts, shared experts and dense layers."""
    path, truth = moe
    archive = open_archive(path)
    experts, weights = archive.read_routes(0, archive.tokens)
    np.testing.assert_array_equal(experts, truth.expert)
    np.testing.assert_array_equal(weights, truth.weight)
    for packed, masks in (
        (archive.read_active(0, archive.tokens), truth.masks),
        (archive.read_expert_active(0, archive.tokens), truth.expert_active),
        (archive.read_shared_active(0, archive.tokens), truth.shared_active),
    ):
        np.testing.assert_array_equal(
            np.unpackbits(packed, axis=-1, bitorder="little", count=masks.shape[-1]).astype(bool), masks
        )


def test_xarray_reads_it_by_dimension_names(moe: tuple[Path, MoeTruth]) -> None:
    """xarray reads the same experts and weights."""
    path, truth = moe
    with xarray.open_datatree(path, engine="zarr") as data:
        assert data["expert_neuron/active"].dims == ("token", "moe_layer", "choice", "neuron_byte")
        # xarray masks fill values and so converts expert ids to floats.
        np.testing.assert_array_equal(data["router/expert"].values.astype(np.uint16), truth.expert)
        np.testing.assert_array_equal(data["router/weight"].values, truth.weight)


def test_unwritten_routes_have_fill_values(tmp_path: Path, columns: Columns) -> None:
    """Plain zarr returns 65535 and NaN for unwritten routes, never expert 0 with weight 0."""
    attributes = random_attributes(0, 0, moe=QWEN)
    create_archive(tmp_path / "a.zarr", attributes, columns(1), plan_layout([2], "prompt", 0))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert (group["router/expert"][:] == 65_535).all()
    assert np.isnan(group["router/weight"][:]).all()


def several(tensor: int, pipeline: int, neurons: int) -> ArchiveAttributes:
    """Attributes of an engine with several processes."""
    moe = MoeInfo(layer_ids=[2, 3], experts=4, experts_per_token=2, neurons=32, shared_neurons=64)
    attributes = random_attributes(2, neurons, moe=moe)
    engine = attributes.engine.model_copy(update={"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline})
    return attributes.model_copy(update={"engine": engine})


@pytest.mark.parametrize(
    ("tensor", "pipeline", "expected"),
    [
        (1, 1, {"neuron": (2, 6), "router": (2, 2), "expert_neuron": (2, 2, 4), "shared_expert_neuron": (2, 8)}),
        (2, 1, {"neuron": (2, 3), "router": (2, 2), "expert_neuron": (2, 2, 2), "shared_expert_neuron": (2, 4)}),
        (1, 2, {"neuron": (1, 6), "router": (1, 2), "expert_neuron": (1, 2, 4), "shared_expert_neuron": (1, 8)}),
    ],
)
def test_a_chunk_has_one_writer(
    tmp_path: Path, columns: Columns, tensor: int, pipeline: int, expected: dict[str, tuple[int, ...]]
) -> None:
    """Tensor-parallel ranks hold slices of the neuron axis, router rows are whole, pipeline stages hold layers."""
    create_archive(tmp_path / "a.zarr", several(tensor, pipeline, 48), columns(1), plan_layout([5], "prompt", 0))
    archive = open_archive(tmp_path / "a.zarr")
    assert {item.component: archive.array(item.name).chunks[1:] for item in archive.captured} == expected


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_chunks_of_all_arrays_have_the_same_rows(tmp_path: Path, columns: Columns, granularity: Any) -> None:
    """All arrays share a chunk length: one with longer chunks would delay every commit."""
    attributes = random_attributes(0, 0, moe=QWEN, granularity=granularity)
    create_archive(tmp_path / "a.zarr", attributes, columns(600), plan_layout([20] * 600, "prompt", 0))
    archive = open_archive(tmp_path / "a.zarr")
    assert {archive.array(item.name).chunks[0] for item in archive.captured} == {256 if granularity == "token" else 1}


def test_a_width_that_ranks_cannot_share_is_refused(tmp_path: Path, columns: Columns) -> None:
    """40 neurons are five bytes, which two ranks cannot halve; nothing is created."""
    with pytest.raises(InvalidInputError, match="multiple of 8 × ranks; neuron/active has 40 neurons for 2 ranks"):
        create_archive(tmp_path / "a.zarr", several(2, 1, 40), columns(1), plan_layout([5], "prompt", 0))
    assert not list(tmp_path.iterdir())


def test_a_valid_archive_passes_every_check(moe: tuple[Path, MoeTruth]) -> None:
    """A valid archive has no findings, routes have their own check, and progress ends at 1."""
    progress: list[float] = []
    checks = verify_archive(open_archive(moe[0]), None, progress.append)
    assert findings(checks) == {}
    assert [check.name for check in checks] == ["format", "states", "rows", "masks", "routes"]
    rows = sum(int(moe[1].layout.capacity[index]) for index in range(10) if index != 3)
    assert checks[-1].looked_at == f"{rows:,} rows of 2 routers"
    assert (progress == sorted(progress), progress[-1]) == (True, 1.0)


def set_first(name: str, value: Any) -> Callable[[Path, Any], None]:
    """Return a change of an array's first element."""

    def damage(path: Path, put: Any) -> None:
        index = (0,) * zarr.open_array(path / name, mode="r").ndim
        put(path, name, index, value)

    return damage


def same_twice(path: Path, put: Any) -> None:
    chosen = zarr.open_array(path / "router/expert", mode="r")[0]
    chosen[1, 1] = chosen[1, 0]
    put(path, "router/expert", 0, chosen)


DAMAGES: dict[str, tuple[Callable[[Path, Any], None], str, str]] = {
    "no expert": (
        set_first("router/expert", 65_535),
        "routes",
        "router/expert: 1 expert ids were never written, the first at instruction 'i000', token 0 .*, layer 1: ",
    ),
    "unknown expert": (
        set_first("router/expert", 6),
        "routes",
        "1 expert ids are not below 6, the first at instruction 'i000'",
    ),
    "expert twice": (same_twice, "routes", "1 top-k lists repeat an expert"),
    "no weight": (set_first("router/weight", np.nan), "routes", "router/weight.*1 weights are not finite"),
    "spare bit": (
        lambda path, put: put(path, "expert_neuron/active", (0, 0, 0, 1), 255),
        "masks",
        "expert_neuron/active: spare bits past neuron 11",
    ),
    "chunk lost": (
        lambda path, _: (path / "shared_expert_neuron/active/c.0.0.0").unlink(),
        "masks",
        "chunk c.0.0.0 of array shared_expert_neuron/active",
    ),
    "routes lost": (
        lambda path, _: (path / "router/weight/c.1.0.0").unlink(),
        "routes",
        "chunk c.1.0.0 of array router/weight",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_found(damaged: tuple[Path, MoeTruth], put: Any, case: str) -> None:
    """The check for this damage names it, and no other check finds anything."""
    damage, name, message = DAMAGES[case]
    damage(damaged[0], put)
    found = findings(verify_archive(open_archive(damaged[0]), None))
    assert list(found) == [name]
    assert re.search(message, found[name][0]), found


def test_routes_of_a_failed_instruction_are_not_checked(damaged: tuple[Path, MoeTruth], put: Any) -> None:
    """Rows of failed instructions are not checked."""
    path, truth = damaged
    row = int(truth.layout.token_start[2] + truth.layout.capacity[2] - 1)
    put(path, "instruction/state", 2, 2)
    put(path, "instruction/error", 2, "on purpose")
    put(path, "router/expert", (row, 0, 0), 65_535)
    assert findings(verify_archive(open_archive(path), None)) == {}


def test_counts_of_experts_are_read_and_checked(tmp_path: Path, put: Any) -> None:
    """Counts equal sums over masks; an expert counted too rarely and a neuron counted too often are found."""
    truth = write_random_moe_archive(tmp_path / "a.zarr", granularity="count", failed=(3,))
    archive = open_archive(tmp_path / "a.zarr")
    assert findings(verify_archive(archive, None)) == {}
    first = slice(0, int(truth.layout.capacity[0]))
    plain = np.zeros((2, 6, 12), dtype=np.uint32)
    for token in range(first.stop):
        for layer in range(2):
            for choice, expert in enumerate(truth.expert[token, layer]):
                plain[layer, expert] += truth.expert_active[token, layer, choice]
    np.testing.assert_array_equal(archive.read_counts(0, 1, "expert_neuron")[0], plain)
    assert (archive.read_counts(0, 1, "router")[0].sum(axis=-1) == 2 * first.stop).all()
    put(tmp_path / "a.zarr", "router/count", (4, 1), np.array([1, 0, 0, 0, 0, 0]))
    put(tmp_path / "a.zarr", "expert_neuron/count", (5, 1, 0, 0), 99)
    found = findings(verify_archive(open_archive(tmp_path / "a.zarr"), None))["counts"]
    assert [re.sub(r"\d+", "N", text) for text in found] == [
        "instruction 'iN': expert counts of a layer must sum to N, N per row; those of layers [N] do not",
        "instruction 'iN', expert_neuron/count, layer N, expert N, neuron N: a count of N exceeds its N rows",
    ]
