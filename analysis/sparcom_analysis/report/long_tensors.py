"""Lists of component ids for other programs, in the form that the authors of LAPE publish: for each category, for each
layer of the model, the ids.

    Components or Lape ─▶ as_index_lists ─▶ .npz   one array a category and layer, key "CATEGORY/LAYER"
                                         ─▶ .pth   List[List[LongTensor]]

A list has one entry for every layer of the model, empty where the component has no such layer, so that the place is the
layer's number. One number names a neuron also in routed experts: expert · neurons of an expert + neuron.

Only the second form needs torch, which is loaded when it is written. It is a pickle, as every file of torch's: read it
with `torch.load(path, weights_only=True)`. What each list means is in `components.json`, see `ids`.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.components.lape import Lape
from sparcom_analysis.measures.general_unique.groups import Components
from sparcom_analysis.tables.formats import visible
from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.storage import write_file

IndexLists: TypeAlias = list[list[NDArray[np.int64]]]


def as_index_lists(
    found: Components | Lape, layers: int, kind: Literal["belonging", "unique"] = "unique"
) -> IndexLists:
    """Category × layer of the model: int64 (k,), ids ascending.

    Args:
        found: neurons or experts of categories, or what LAPE selected.
        layers: layers of the model, `archive.attributes.model.layers`.
        kind: all of a category's, or those that are its alone; of LAPE's neurons all, whatever is asked for.

    Raises:
        InvalidInputError: the model is said to have fewer layers than the component reaches to.
    """
    layer_ids = found.population.layer_ids if isinstance(found, Lape) else found.layer_ids
    if layers <= max(layer_ids):
        raise InvalidInputError(
            f"a list needs an entry for layer {max(layer_ids)}; layers is {layers}. Give all layers of the model"
        )
    lists: IndexLists = []
    for code in range(len(found.categories)):
        own = [np.zeros(0, dtype=np.int64) for _ in range(layers)]
        ids = found.ids(code) if isinstance(found, Lape) else found.ids(kind, code)
        for layer, some in zip(layer_ids, ids, strict=True):
            own[layer] = some
        lists.append(own)
    return lists


def index_arrays(categories: Sequence[str], lists: IndexLists) -> bytes:
    """An .npz file of the lists, the same bytes for the same lists.

    A character that is none to see stands as U+FFFD in a key: of a name with a NUL a zip file keeps what is before it.
    """
    named = zip(map(visible, categories), lists, strict=True)
    arrays = {f"{name}/{layer}": ids for name, own in named for layer, ids in enumerate(own)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_index_arrays(path: str | Path) -> tuple[list[str], IndexLists]:
    """Categories, and lists of int64 (k,) for each category and layer, of an .npz file that `index_arrays` made."""
    lists: dict[str, list[NDArray[np.int64]]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            lists.setdefault(key.rsplit("/", 1)[0], []).append(arrays[key])
    return list(lists), list(lists.values())


def save_long_tensors(path: str | Path, lists: IndexLists) -> None:
    """Write List[List[LongTensor]] with torch.

    Args:
        lists: category × layer, int64 (k,), as `as_index_lists` and `read_index_arrays` give them.

    Raises:
        MissingExtraError: torch is not installed.
        StorageError: the file cannot be written.
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
