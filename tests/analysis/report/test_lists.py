"""Lists of members by id: what is written is what the Datasets hold, in every form, and reads back equal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis.report.lists import (
    ComponentsFile,
    IndexLists,
    as_index_lists,
    index_arrays,
    lists_of,
    read_index_arrays,
    save_long_tensors,
)
from sparcom_analysis.report.run import analyze
from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.testing import write_random_archive, write_random_moe_archive

NODES = {
    "expert_neuron": "general_unique",
    "neuron": "neuron/general_unique",
    "shared_expert_neuron": "shared_expert_neuron/general_unique",
    "expert": "general_unique_experts",
    "most_used_expert": "general_unique_most_used_experts",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """Every population of an MoE model with one dense layer; a category's name holds the separator of keys."""
    path = tmp_path_factory.mktemp("lists") / "A.zarr"
    write_random_moe_archive(path, categories=("b/1", "", "a"))
    rates = {"lape_top": 0.4, "lape_filter": 0.5, "lape_bar": 0.5}
    return analyze(path, top=0.3, n_resamples=0, n_permutations=0, top_experts=2, equal_length=False, **rates)


@pytest.fixture(scope="module")
def files(run: xr.DataTree) -> dict[str, bytes]:
    """What is written of it."""
    return lists_of(run)


def members(ds: xr.Dataset, category: str, kind: str) -> list[tuple[int, ...]]:
    """Layer and ids of a category's members, in order; of LAPE the specific neurons."""
    if "specific" in ds:
        chosen = ds["specific"].sel(category=category).values
    else:
        chosen = (ds["member_category"].values == category) & ((ds["member_kind"].values == kind) | (kind == "members"))
    names = [f"member_{name}" for name in ("layer", "expert", "neuron") if f"member_{name}" in ds]
    return sorted(zip(*(ds[name].values[chosen].tolist() for name in names), strict=True))


def equal(left: IndexLists, right: IndexLists) -> bool:
    """Whether both hold the same ids in the same places, all int64."""
    return all(
        a.dtype == b.dtype == np.int64 and a.tolist() == b.tolist()
        for own, other in zip(left, right, strict=True)
        for a, b in zip(own, other, strict=True)
    )


def test_there_is_a_file_per_population(files: dict[str, bytes]) -> None:
    """Members and unique members of each, LAPE's neurons, components.json and its schema; nothing of a tuned model."""
    expected = {f"lists/{kind}-{name}.npz" for kind in ("members", "unique") for name in NODES}
    lape = {f"lists/lape-{name}.npz" for name in ("expert_neuron", "neuron", "shared_expert_neuron")}
    assert set(files) == expected | lape | {"components.json", "components.schema.json"}
    assert lists_of(xr.DataTree()) == {}


@pytest.mark.parametrize("name", [*NODES.values(), "lape"])
@pytest.mark.parametrize("kind", ["members", "unique"])
def test_a_list_has_one_entry_for_every_layer_of_the_model(run: xr.DataTree, name: str, kind: str) -> None:
    """The position is the layer's number, those without the population are empty, and ids are the Dataset's."""
    ds = run[name].to_dataset()
    lists = as_index_lists(ds, 4, kind)  # type: ignore[arg-type]
    assert [len(own) for own in lists] == [4] * 3
    width = ds.attrs.get("neurons_per_expert", 1)
    for category, own in zip(ds["category"].values, lists, strict=True):
        said = [(j, *np.divmod(i, width)) if width > 1 else (j, i) for j, ids in enumerate(own) for i in ids.tolist()]
        assert said == members(ds, category, kind)
    assert sum(len(ids) for own in as_index_lists(ds, kind="members") for ids in own) > 0
    assert len(as_index_lists(ds)[0]) == 3


def test_arrays_read_back_equal(run: xr.DataTree, files: dict[str, bytes], tmp_path: Path) -> None:
    """Of every population; the same lists give the same bytes."""
    for name, node in NODES.items():
        ds = run[node].to_dataset()
        lists = as_index_lists(ds)
        assert files[f"lists/unique-{name}.npz"] == index_arrays(ds, lists)
        (tmp_path / f"{name}.npz").write_bytes(files[f"lists/unique-{name}.npz"])
        categories, read = read_index_arrays(tmp_path / f"{name}.npz")
        assert categories == ["b/1", "(none)", "a"]
        assert equal(read, lists)
    with np.load(tmp_path / "expert.npz") as arrays:
        assert {"b/1/0", "b/1/1", "b/1/2", "(none)/2"} <= set(arrays.files)


def test_names_that_cannot_be_printed_are_written_visibly(run: xr.DataTree) -> None:
    """A zip file cuts a name at a NUL; U+FFFD stands for it."""
    ds = run["general_unique"].to_dataset().assign_coords(category=["a\0b", "", "a"])
    with np.load(io.BytesIO(index_arrays(ds, as_index_lists(ds)))) as arrays:
        assert "a\ufffdb/0" in arrays.files


@pytest.mark.torch
def test_long_tensors_read_back_equal(run: xr.DataTree, tmp_path: Path) -> None:
    """List[List[LongTensor]], loaded without running code from the file."""
    torch = pytest.importorskip("torch")
    lists = as_index_lists(run["lape"].to_dataset())
    save_long_tensors(tmp_path / "lape.pth", lists)
    read = torch.load(tmp_path / "lape.pth", weights_only=True)
    assert {type(read), type(read[0]), read[0][0].dtype} == {list, torch.int64}
    assert equal([[one.numpy() for one in own] for own in read], lists)


def test_without_torch_the_remedy_is_named(run: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch is absent nothing is written, and the message says what to install or to use instead."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install torch; the \.npz files"):
        save_long_tensors(tmp_path / "lape.pth", as_index_lists(run["lape"].to_dataset()))
    assert list(tmp_path.iterdir()) == []


def test_too_few_layers_are_refused(run: xr.DataTree) -> None:
    """A list that would have no place for a layer is an error, not cut."""
    with pytest.raises(InvalidInputError, match="an entry for layer 2; layers is 2"):
        as_index_lists(run["general_unique_experts"].to_dataset(), 2)


def test_the_json_file_reads_back_equal(run: xr.DataTree, files: dict[str, bytes]) -> None:
    """Ids per category and layer are the Datasets'; routed experts' are pairs; empty layers are left out."""
    read = json.loads(files["components.json"])
    assert ComponentsFile.model_validate_json(files["components.json"]).model_dump(mode="json") == read
    assert read["selection"] == {
        "positions": "prompt",
        "top": 0.3,
        "min_frequency": None,
        "min_share": 0.5,
        "top_experts": 2,
    }
    assert (read["model"], read["archive"], read["categories"]) == ("random", "A.zarr", ["b/1", "(none)", "a"])
    for part in read["components"]:
        ds = run[NODES[part["population"]]].to_dataset()
        for kind in ("members", "unique"):
            for category, layers in part[kind].items():
                assert flat(layers) == members(ds, category, kind)
        for kind in ("common", "general"):
            ids = {x for category in ds["category"].values for x in members(ds, category, kind)}
            assert flat(part[kind]) == sorted(ids)
    assert [part["population"] for part in read["lape"]] == ["expert_neuron", "neuron", "shared_expert_neuron"]
    for category, layers in read["lape"][0]["specific"].items():
        assert flat(layers) == members(run["lape"].to_dataset(), category, "")


def flat(layers: dict[str, list[int] | list[list[int]]]) -> list[tuple[int, ...]]:
    """Layer and ids; no layer is empty."""
    assert all(layers.values())
    return [(int(j), *(x if isinstance(x, list) else [x])) for j, ids in layers.items() for x in ids]


def test_one_category_has_members_alone(tmp_path: Path) -> None:
    """The reason is said; nothing is unique, common or general; LAPE is not computed."""
    write_random_archive(tmp_path / "A.zarr", categories=("a",))
    run = analyze(tmp_path / "A.zarr", n_resamples=0, n_permutations=0, equal_length=False)
    read = json.loads(lists_of(run)["components.json"])
    (part,) = read["components"]
    assert part["reason"].startswith("There is only one category")
    assert part["members"]["a"]
    assert (part["unique"], part["common"], part["general"]) == ({"a": {}}, {}, {})
    assert read["lape"] == []
    assert "lape" in [one["measure"] for one in run.attrs["not_computed"]]


def test_the_schema_describes_every_field(files: dict[str, bytes]) -> None:
    """The JSON Schema names each part, and each field has a description."""
    schema = json.loads(files["components.schema.json"])
    assert schema["properties"]["model"]["description"] == "Model id."
    fields = [field for part in [schema, *schema["$defs"].values()] for field in part["properties"].values()]
    assert len(fields) > 20
    assert all(field.get("description") for field in fields)


def test_the_model_is_its_whole_id(run: xr.DataTree) -> None:
    """An id with an organization stays whole; the archive's name is the last part of its path."""
    other = run.copy()
    other.attrs = run.attrs | {"archive": run.attrs["archive"] | {"model": "lab/Model-7B"}}
    read = json.loads(lists_of(other)["components.json"])
    assert (read["model"], read["archive"]) == ("lab/Model-7B", "A.zarr")
