"""Ids of the selected neurons and experts: one CSV table per measure, and index lists in LAPE's format."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis.report.export import nodes
from sparcom_analysis.report.tables import csv_bytes
from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.storage import write_file

Kind = Literal["members", "unique"]
IndexLists = Sequence[Sequence[NDArray[np.int64]]]
"""Ids per category and model layer: int64 (k,) each."""


def lists_of(run: xr.DataTree) -> dict[str, bytes]:
    """Return the bytes of `lists/MEASURE.csv`, by relative path, for every measure with members."""
    return {
        f"lists/{path.replace('/', '-')}.csv": csv_bytes(member_frame(ds))
        for path, _, ds in nodes(run)
        if "member" in ds.dims
    }


def member_frame(ds: xr.Dataset) -> Any:
    """Return a DataFrame with one row per category and member; for LAPE, each category's specific neurons."""
    held = ds[[name for name in ds.data_vars if "member" in ds[name].dims]]
    frame = held.to_dataframe()
    if "specific" in held:
        frame = frame[frame["specific"]].drop(columns="specific").reset_index()
    frame = frame.rename(columns=lambda name: name.removeprefix("member_"))
    order = [name for name in ("category", "kind", "layer", "expert", "neuron") if name in frame]
    return frame[[*order, *(name for name in frame if name not in (*order, "member"))]]


def as_index_lists(ds: xr.Dataset, layers: int | None = None, kind: Kind = "unique") -> IndexLists:
    """Return ascending ids per category and model layer. A routed neuron's id is expert · neurons + neuron.

    Args:
        ds: result of `general_unique`, or of `lape`, for which `kind` is ignored.
        layers: number of layers of the model (default: the Dataset's `model_layers`).
        kind: "unique" (default) or "members".

    Raises:
        InvalidInputError: `layers` is too small for the ids.
    """
    layers = int(ds.attrs["model_layers"]) if layers is None else layers
    if layers <= (last := int(ds["layer"].max())):
        raise InvalidInputError(f"layers must be greater than {last}; got {layers}. Pass the model's number of layers")
    each = [_ids(ds, kind, name) for name in ds["category"].values]
    return [[ids[own == layer] for layer in range(layers)] for own, ids in each]


def save_long_tensors(path: str | Path, lists: IndexLists) -> None:
    """Write LAPE's List[List[LongTensor]] format; `torch.load(path, weights_only=True)` reads it.

    Raises:
        MissingExtraError: torch is not installed. StorageError: the file cannot be written.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "writing LongTensors needs torch, which is not installed; run pip install torch, or use the same ids in "
            "lists/*.csv"
        ) from error
    buffer = io.BytesIO()
    torch.save([[torch.from_numpy(ids.copy()) for ids in own] for own in lists], buffer)
    write_file(Path(path), [buffer.getbuffer()])


def _ids(ds: xr.Dataset, kind: str, category: Any) -> NDArray[np.int64]:
    """Return the layer and id of a category's members of this kind, unique and ascending: int64 (2, k)."""
    if "specific" in ds:
        chosen = ds["specific"].sel(category=category).values.astype(np.bool_)
    else:
        chosen = ds["member_category"].values == category
        chosen &= (ds["member_kind"].values == kind) | (kind == "members")
    ids = np.zeros(int(chosen.sum()), dtype=np.int64)
    for name, width in (("member_expert", ds.attrs.get("neurons_per_expert", 1)), ("member_neuron", 1)):
        if name in ds:
            ids += ds[name].values[chosen] * width
    return np.unique(np.stack([ds["member_layer"].values[chosen], ids]), axis=1)
