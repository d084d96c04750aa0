"""The ids of neurons and experts that were found, for other programs: components.json and the lists in lists/.

    components.json          ids per category and layer; `ComponentsFile` reads it, components.schema.json describes it
    lists/members-NAME.npz   an int64 array per category and layer, key "CATEGORY/LAYER"; NAME is the population
    lists/unique-NAME.npz, lists/lape-NAME.npz

In a list the position is the layer's number in the model; layers without the population are empty. One number names a
neuron: for routed experts it is expert · neurons per expert + neuron.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.schema.metadata import Positions
from sparcom_data.storage import write_file

Kind = Literal["members", "unique"]
IndexLists: TypeAlias = list[list[NDArray[np.int64]]]
LayerIds = dict[int, list[int] | list[tuple[int, int]]]
NAMES = "Whose ids: `neuron`, `expert_neuron`, `shared_expert_neuron`, `expert` (ISEs) or `most_used_expert`."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the part with these values; None for what is not among them."""
        return cls.model_validate({name: values.get(name) for name in cls.model_fields})


class SelectionRule(_Part):
    """How neurons and experts of an instruction were selected (SPARCOM, eq. 7), and members of a category."""

    positions: Positions = Field(description="Tokens that were counted.")
    top: float | None = Field(description="Fraction of all neurons selected; null with the other rule.")
    min_frequency: float | None = Field(description="Least p of a selected neuron; null with the other rule.")
    min_share: float = Field(description="Fraction of a category's instructions from which an id is a member.")
    top_experts: int | None = Field(description="Experts per layer among `most_used_expert`; null without a router.")


class MemberIds(_Part):
    """Members of one population, by category and layer. An id is a number, or a pair of expert and neuron."""

    population: str = Field(description=NAMES)
    reason: str | None = Field(description="Why nothing is general or unique; null with several categories.")
    members: dict[str, LayerIds] = Field(description="Per category: all its members.")
    unique: dict[str, LayerIds] = Field(description="Per category: members of it alone.")
    common: LayerIds = Field(description="Members of two or more categories, but not of all.")
    general: LayerIds = Field(description="Members of all categories.")


class LapeIds(_Part):
    """What LAPE selected among the neurons of one population."""

    population: str = Field(description=NAMES)
    lape_top: float = Field(description="Fraction of all neurons that is selected.")
    lape_filter: float = Field(description="Quantile of all p that a neuron must pass in some category.")
    lape_bar: float = Field(description="Quantile of all p above which a neuron is specific to a category.")
    specific: dict[str, LayerIds] = Field(description="Per category: neurons specific to it.")


class ComponentsFile(_Part):
    """components.json: sparse components of a model, by id."""

    schema_version: Literal[2] = Field(default=2, description="Version of this form.")
    model: str = Field(description="Model id.")
    archive: str = Field(description="Last part of the archive's path.")
    selection: SelectionRule = Field(description="How they were selected.")
    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    components: list[MemberIds] = Field(description="General and unique ids of each population.")
    lape: list[LapeIds] = Field(description="LAPE of each population of neurons; empty if it was not computed.")


def lists_of(run: xr.DataTree) -> dict[str, bytes]:
    """Return the files of a run: path below the folder and bytes; nothing without general and unique members."""
    found = [node.to_dataset() for node in run.subtree if not node.path.startswith("/tuned/")]
    groups, selected = ([ds for ds in found if name in ds] for name in ("member_kind", "specific"))
    if not groups:
        return {}
    facts = {name: value for ds in groups for name, value in ds.attrs.items()}
    held = ComponentsFile(
        model=run.attrs["archive"]["model"],
        archive=facts["archive"],
        selection=SelectionRule.of(facts),
        categories=[str(name) for name in groups[0]["category"].values],
        components=[MemberIds.of(ds.attrs | _member_ids(ds)) for ds in groups],
        lape=[LapeIds.of(ds.attrs | {"specific": _by_category(ds, "")}) for ds in selected],
    )
    schema = json.dumps(ComponentsFile.model_json_schema(), indent=2, ensure_ascii=False)
    files = {
        "components.json": f"{held.model_dump_json()}\n".encode(),
        "components.schema.json": f"{schema}\n".encode(),
    }
    for ds in selected:
        files[f"lists/lape-{ds.attrs['population']}.npz"] = index_arrays(ds, as_index_lists(ds))
    for ds in groups:
        for kind in get_args(Kind):
            files[f"lists/{kind}-{ds.attrs['population']}.npz"] = index_arrays(ds, as_index_lists(ds, kind=kind))
    return files


def as_index_lists(ds: xr.Dataset, layers: int | None = None, kind: Kind = "unique") -> IndexLists:
    """Return ids per category and layer of the model: int64 (k,), ascending.

    Args:
        ds: of `general_unique` or of `lape`, whose specific neurons are returned whatever the kind.
        layers: layers of the model; None: as the Dataset says.

    Raises:
        InvalidInputError: there are fewer layers than the ids reach to.
    """
    layers = int(ds.attrs["model_layers"]) if layers is None else layers
    if layers <= (last := int(ds["layer"].max())):
        raise InvalidInputError(f"a list needs an entry for layer {last}; layers is {layers}. Give all of the model")
    each = [_ids(ds, kind, name) for name in ds["category"].values]
    return [[ids[own == layer] for layer in range(layers)] for own, ids in each]


def index_arrays(ds: xr.Dataset, lists: IndexLists) -> bytes:
    """Return an .npz file of the lists, the same bytes for the same lists.

    Characters of a category's name that cannot be printed are U+FFFD in a key: a zip file cuts a name at a NUL.
    """
    names = ["".join(c if c.isprintable() else "\ufffd" for c in str(name)) for name in ds["category"].values]
    buffer = io.BytesIO()
    arrays = {f"{name}/{j}": ids for name, own in zip(names, lists, strict=True) for j, ids in enumerate(own)}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_index_arrays(path: str | Path) -> tuple[list[str], IndexLists]:
    """Return categories, and int64 (k,) per category and layer, of an .npz file in lists/."""
    lists: dict[str, list[NDArray[np.int64]]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            lists.setdefault(key.rsplit("/", 1)[0], []).append(arrays[key])
    return list(lists), list(lists.values())


def save_long_tensors(path: str | Path, lists: IndexLists) -> None:
    """Write the List[List[LongTensor]] that LAPE's authors publish; `torch.load(path, weights_only=True)` reads it.

    Raises:
        MissingExtraError: torch is not installed. StorageError: the file cannot be written.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "lists of LongTensors are written by torch, which is not installed: pip install torch; "
            "the .npz files hold the same ids and need numpy alone"
        ) from error
    buffer = io.BytesIO()
    torch.save([[torch.from_numpy(ids.copy()) for ids in own] for own in lists], buffer)
    write_file(Path(path), [buffer.getbuffer()])


def _ids(ds: xr.Dataset, kind: str, category: Any = None) -> NDArray[np.int64]:
    """Return layer and id of the members of this kind and category, once each, ascending: int64 (2, k)."""
    if "specific" in ds:
        chosen = ds["specific"].sel(category=category).values.astype(np.bool_)
    else:
        chosen = (ds["member_kind"].values == kind) | (kind == "members")
        chosen &= category is None or ds["member_category"].values == category
    ids = np.zeros(int(chosen.sum()), dtype=np.int64)
    for name, width in (("member_expert", ds.attrs.get("neurons_per_expert", 1)), ("member_neuron", 1)):
        if name in ds:
            ids += ds[name].values[chosen] * width
    return np.unique(np.stack([ds["member_layer"].values[chosen], ids]), axis=1)


def _by_layer(ds: xr.Dataset, kind: str, category: Any = None) -> dict[int, Any]:
    """Return the ids of each layer that has some; pairs of expert and neuron for routed experts."""
    layer, ids = _ids(ds, kind, category)
    if width := ds.attrs.get("neurons_per_expert"):
        ids = np.stack(np.divmod(ids, width), axis=1)
    return {own: ids[layer == own].tolist() for own in np.unique(layer).tolist()}


def _by_category(ds: xr.Dataset, kind: str) -> dict[str, dict[int, Any]]:
    return {str(name): _by_layer(ds, kind, name) for name in ds["category"].values}


def _member_ids(ds: xr.Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {kind: _by_category(ds, kind) for kind in get_args(Kind)}
    return found | {kind: _by_layer(ds, kind) for kind in ("common", "general")}
