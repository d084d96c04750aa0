"""Lists of member ids: every format holds the ids of the Datasets and reads back equal."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis.report.lists import IndexLists, as_index_lists, lists_of, save_long_tensors
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
    """Every population of an MoE model with one dense layer; a category's name contains the separator of keys."""
    path = tmp_path_factory.mktemp("lists") / "A.zarr"
    write_random_moe_archive(path, categories=("b/1", "", "a"))
    rates = {"lape_top": 0.4, "lape_filter": 0.5, "lape_bar": 0.5}
    return analyze(path, top=0.3, n_resamples=0, n_permutations=0, top_experts=2, equal_length=False, **rates)


@pytest.fixture(scope="module")
def files(run: xr.DataTree) -> dict[str, bytes]:
    """The list files of the run."""
    return lists_of(run)


def members(ds: xr.Dataset, category: str, kind: str) -> list[tuple[int, ...]]:
    """Return layer and ids of a category's members, in order; for LAPE, of its specific neurons."""
    if "specific" in ds:
        chosen = ds["specific"].sel(category=category).values
    else:
        chosen = (ds["member_category"].values == category) & ((ds["member_kind"].values == kind) | (kind == "members"))
    names = [f"member_{name}" for name in ("layer", "expert", "neuron") if f"member_{name}" in ds]
    return sorted(zip(*(ds[name].values[chosen].tolist() for name in names), strict=True))


def equal(left: IndexLists, right: IndexLists) -> bool:
    """Return whether both hold the same ids in the same places, all int64."""
    return all(
        a.dtype == b.dtype == np.int64 and a.tolist() == b.tolist()
        for own, other in zip(left, right, strict=True)
        for a, b in zip(own, other, strict=True)
    )


def test_there_is_a_table_per_measure_with_members(files: dict[str, bytes]) -> None:
    """Tables list general and unique members of every population and LAPE's neurons, none of a tuned model."""
    lape = {"lape", "neuron/lape", "shared_expert_neuron/lape"}
    assert set(files) == {f"lists/{node.replace('/', '-')}.csv" for node in {*NODES.values(), *lape}}
    assert lists_of(xr.DataTree()) == {}


@pytest.mark.parametrize("name", [*NODES.values(), "lape"])
def test_tables_hold_the_ids_of_the_datasets(run: xr.DataTree, files: dict[str, bytes], name: str) -> None:
    """A row per category and member, with its layer, its expert if there is one, and its kind."""
    ds = run[name].to_dataset()
    rows = list(csv.DictReader(io.StringIO(files[f"lists/{name.replace('/', '-')}.csv"].decode())))
    columns = [column for column in ("layer", "expert", "neuron") if column in rows[0]]
    for category in ds["category"].values:
        said = [tuple(int(row[column]) for column in columns) for row in rows if row["category"] == category]
        assert sorted(said) == members(ds, category, "members")
        if "kind" in rows[0]:
            own = [row for row in rows if row["category"] == category and row["kind"] == "unique"]
            assert len(own) == len(members(ds, category, "unique"))
    assert ("frequency" in rows[0]) == ("entropy" in rows[0]) == (name == "lape")


@pytest.mark.parametrize("name", [*NODES.values(), "lape"])
@pytest.mark.parametrize("kind", ["members", "unique"])
def test_a_list_has_one_entry_for_every_layer_of_the_model(run: xr.DataTree, name: str, kind: str) -> None:
    """The position is the layer's number; layers without the population are empty; ids equal the Dataset's."""
    ds = run[name].to_dataset()
    lists = as_index_lists(ds, 4, kind)  # type: ignore[arg-type]
    assert [len(own) for own in lists] == [4] * 3
    width = ds.attrs.get("neurons_per_expert", 1)
    for category, own in zip(ds["category"].values, lists, strict=True):
        said = [(j, *np.divmod(i, width)) if width > 1 else (j, i) for j, ids in enumerate(own) for i in ids.tolist()]
        assert said == members(ds, category, kind)
    assert sum(len(ids) for own in as_index_lists(ds, kind="members") for ids in own) > 0
    assert len(as_index_lists(ds)[0]) == 3


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
    """Without torch nothing is written, and the error names the package or the alternative."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"run pip install torch"):
        save_long_tensors(tmp_path / "lape.pth", as_index_lists(run["lape"].to_dataset()))
    assert list(tmp_path.iterdir()) == []


def test_too_few_layers_are_refused(run: xr.DataTree) -> None:
    """Too few layers raise an error; the list is not truncated."""
    with pytest.raises(InvalidInputError, match="greater than 2; got 2"):
        as_index_lists(run["general_unique_experts"].to_dataset(), 2)


def test_one_category_has_only_plain_members(tmp_path: Path) -> None:
    """Members are listed, none of them unique, common or general; LAPE is not computed."""
    write_random_archive(tmp_path / "A.zarr", categories=("a",))
    run = analyze(tmp_path / "A.zarr", n_resamples=0, n_permutations=0, equal_length=False)
    (table,) = lists_of(run).values()
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert {row["kind"] for row in rows} == {"member"}
    assert "lape" in [one["measure"] for one in run.attrs["not_computed"]]
