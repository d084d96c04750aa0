"""Lists of component ids: what is written is what was found, in every form, and reads back equal."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.components.experts import expert_components
from sparcom_analysis.measures.general_unique.groups import Components, neuron_components
from sparcom_analysis.components.lape import Lape, LapeRates, lape
from sparcom_analysis.components.pooled import pooled_counts
from sparcom_analysis.report.ids import (
    ComponentsFile,
    component_ids,
    json_schema,
    lape_ids,
    selection_rule,
)
from sparcom_analysis.report.long_tensors import (
    IndexLists,
    as_index_lists,
    index_arrays,
    read_index_arrays,
    save_long_tensors,
)
from sparcom_analysis.isn import Selection
from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.testing import write_random_moe_archive

CATEGORIES = ("b/1", "", "a")
SELECTION = Selection(epsilon=0.3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Components | Lape]:
    """Every kind of component of a mixture with one dense layer, and LAPE of its routed experts."""
    path = tmp_path_factory.mktemp("export") / "A.zarr"
    write_random_moe_archive(path, categories=CATEGORIES)
    archive = open_archive(path)
    every: dict[str, Components | Lape] = {
        name: neuron_components(instruction_specific_neurons(archive, epsilon=0.3, component=name))  # type: ignore[arg-type]
        for name in ("neuron", "expert_neuron", "shared_expert_neuron")
    }
    every["expert"] = expert_components(instruction_experts(archive), top=2)
    every["lape"] = lape(pooled_counts(archive), LapeRates(top=0.4, filter=0.5, bar=0.5))
    return every


def equal(left: IndexLists, right: IndexLists) -> bool:
    """Whether both hold the same ids in the same places, all int64."""
    return all(
        a.dtype == b.dtype == np.int64 and a.tolist() == b.tolist()
        for own, other in zip(left, right, strict=True)
        for a, b in zip(own, other, strict=True)
    )


@pytest.mark.parametrize("name", ["neuron", "expert_neuron", "shared_expert_neuron", "expert", "lape"])
@pytest.mark.parametrize("kind", ["belonging", "unique"])
def test_a_list_has_one_entry_for_every_layer_of_the_model(found, name: str, kind: str) -> None:  # type: ignore[no-untyped-def]
    """The place is the layer's number, those without the component are empty, and ids are those of the mask."""
    item = found[name]
    lists = as_index_lists(item, 4, kind)  # type: ignore[arg-type]
    held = [0] if name == "neuron" else [1, 2]
    total = 0
    for code, own in enumerate(lists):
        assert len(own) == 4
        mask = item.mask(code) if name == "lape" else item.mask(kind, code)
        for layer, ids in enumerate(own):
            expected = mask[held.index(layer)].reshape(-1) if layer in held else np.zeros(1, dtype=bool)
            assert ids.tolist() == np.flatnonzero(expected).tolist()
            total += len(ids)
    assert total > 0


def test_arrays_read_back_equal(found, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Of every kind; the same lists give the same bytes; a category's name may hold the separator."""
    for name, item in found.items():
        lists = as_index_lists(item, 3)
        data = index_arrays(item.categories, lists)
        assert data == index_arrays(item.categories, lists)
        (tmp_path / f"{name}.npz").write_bytes(data)
        categories, read = read_index_arrays(tmp_path / f"{name}.npz")
        assert categories == ["b/1", "(none)", "a"]
        assert equal(read, lists)
    with np.load(tmp_path / "expert.npz") as arrays:
        assert {"b/1/0", "b/1/1", "b/1/2", "(none)/2"} <= set(arrays.files)


@pytest.mark.torch
def test_the_documented_way_to_long_tensors_works(found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The block of docs/metrics.md runs as it stands on a file of an analysis."""
    torch = pytest.importorskip("torch")
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "save_long_tensors" in block)
    lists = as_index_lists(found["neuron"], 3)
    (tmp_path / "results" / "lists").mkdir(parents=True)
    (tmp_path / "results" / "lists" / "unique-neuron.npz").write_bytes(index_arrays(found["neuron"].categories, lists))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/metrics.md", "exec"), {})  # noqa: S102
    read = torch.load(tmp_path / "unique-neuron.pth", weights_only=True)
    assert equal([[ids.numpy() for ids in own] for own in read], lists)


@pytest.mark.torch
def test_long_tensors_read_back_equal(found, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """List[List[LongTensor]], loaded without running code from the file."""
    torch = pytest.importorskip("torch")
    lists = as_index_lists(found["lape"], 3)
    save_long_tensors(tmp_path / "lape.pth", lists)
    read = torch.load(tmp_path / "lape.pth", weights_only=True)
    assert {type(read), type(read[0]), read[0][0].dtype} == {list, torch.int64}
    assert equal([[one.numpy() for one in own] for own in read], lists)


def test_without_torch_the_remedy_is_named(found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Where torch is absent nothing is written, and the message says what to install or to use instead."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install torch; the \.npz files"):
        save_long_tensors(tmp_path / "lape.pth", as_index_lists(found["lape"], 3))
    assert list(tmp_path.iterdir()) == []


def test_too_few_layers_are_refused(found) -> None:  # type: ignore[no-untyped-def]
    """A list that would have no place for a layer is an error, not cut."""
    with pytest.raises(InvalidInputError, match="an entry for layer 2; layers is 2"):
        as_index_lists(found["expert"], 2)


def test_the_json_file_reads_back_equal(found) -> None:  # type: ignore[no-untyped-def]
    """Ids by category and layer are those of the index lists; routed experts' are pairs; empty layers are left out."""
    parts = [item for name, item in found.items() if name != "lape"]
    neurons = found["neuron"]
    file = ComponentsFile(
        model="random",
        archive="A.zarr",
        selection=selection_rule(SELECTION, "prompt", neurons.share, 2),
        categories=list(neurons.categories),
        components=[component_ids(item) for item in parts],
        lape=[lape_ids(found["lape"])],
    )
    text = file.to_json()
    assert ComponentsFile.model_validate_json(text) == file
    read = json.loads(text)
    for one, item in zip(read["components"], parts, strict=True):
        for kind in ("belonging", "unique"):
            assert_ids(one[kind], item, as_index_lists(item, 3, kind))
        for kind in ("general", "shared"):
            ids = [some.tolist() for some in item.ids(kind)]
            assert [plain(item, one[kind].get(str(layer), [])) for layer in item.layer_ids] == ids
    assert_ids(read["lape"][0]["specific"], found["lape"], as_index_lists(found["lape"], 3))


def plain(item: Components | Lape, ids: list[int] | list[list[int]]) -> list[int]:
    """Ids as one number each."""
    if isinstance(item, Lape) or item.routed:
        return [expert * 12 + neuron for expert, neuron in ids]  # type: ignore[misc]
    return ids  # type: ignore[return-value]


def assert_ids(written, item: Components | Lape, lists: IndexLists) -> None:  # type: ignore[no-untyped-def]
    """What is written of each category is what its lists hold."""
    assert list(written) == list(item.categories)
    for own, layers in zip(lists, written.values(), strict=True):
        assert [plain(item, layers.get(str(layer), [])) for layer in range(3)] == [ids.tolist() for ids in own]
        assert all(layers.values())


def test_the_form_has_a_schema_that_describes_every_field() -> None:
    """The JSON Schema names each part, and each field has a description."""
    schema = json.loads(json_schema())
    fields = [field for part in [schema, *schema["$defs"].values()] for field in part["properties"].values()]
    assert len(fields) > 20
    assert all(field.get("description") for field in fields)
