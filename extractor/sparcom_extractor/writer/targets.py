"""What one process writes of an archive: which arrays, which chunks of them, and which layers of its own rows.

    tensor-parallel rank    its slice of every neuron axis; the first rank also the router's rows
    pipeline stage          its own layers, one chunk each

So no two processes ever write one chunk. The archive's attributes say how many processes there are; which one this is
comes from the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import zarr
from numpy.typing import NDArray

from sparcom_data.schema import CapturedArray, captured_arrays
from sparcom_data.schema.metadata import ArchiveAttributes, ModelInfo, parse_attributes
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.writer.chunks import ChunkTarget, ChunkType


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """Chunks of one array. name: of the array. row: shape of one of the process's own rows.

    layer: the one of the process's own layers that goes there; None: all.
    """

    name: str
    target: ChunkTarget
    row: tuple[int, ...]
    layer: int | None = None

    def of(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The part of rows (n, layer, …) that goes into these chunks."""
        return rows if self.layer is None else rows[:, self.layer : self.layer + 1]


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of an engine this is.

    rank: of tensor parallelism. layer_ids, moe_layer_ids: the layers it has; None where it has all of the model's.
    """

    rank: int = 0
    layer_ids: Sequence[int] | None = None
    moe_layer_ids: Sequence[int] | None = None

    def layers_of(self, item: CapturedArray, model: ModelInfo) -> list[int]:
        """Where the layers that it has lie on the array's layer axis."""
        whole = model.layer_ids if item.component == "neuron" or model.moe is None else model.moe.layer_ids
        own = self.layer_ids if item.component == "neuron" else self.moe_layer_ids
        return [whole.index(layer) for layer in (whole if own is None else own)]


def archive_parts(path: Path, place: Place = Place(), run: str | None = None) -> tuple[list[ArrayPart], int]:
    """What is written of the archive at `path` by one process, and for how many instructions.

    Args:
        run: the run id that the archive must have; None takes the archive that is there.

    Raises:
        StorageError: no archive is there, or that of another run.
    """
    archive = PinnedArchive(path, run)
    group = zarr.open_group(archive.root, mode="r", use_consolidated=False)
    attributes = parse_attributes(dict(group.attrs), str(path))
    parts = []
    for item in captured_arrays(attributes.model, attributes.capture.granularity):
        if item.neurons or place.rank == 0:
            parts.extend(_parts_of(archive, group, attributes, item, place))
    instructions = group["instruction/state"]
    assert isinstance(instructions, zarr.Array)  # noqa: S101  (written by create_archive)
    return parts, instructions.shape[0]


def _parts_of(
    archive: PinnedArchive, group: zarr.Group, attributes: ArchiveAttributes, item: CapturedArray, place: Place
) -> list[ArrayPart]:
    array = group[item.name]
    assert isinstance(array, zarr.Array)  # noqa: S101
    chunks = tuple(array.chunks)
    layers = place.layers_of(item, attributes.model)
    own = (len(layers), *chunks[2:])
    rank = place.rank if item.neurons else 0

    def part(layer_place: int, chosen: int | None) -> ArrayPart:
        places = [0] * (array.ndim - 1)
        places[0] = layer_place
        if chunks[-1] < item.row[-1]:  # cut among the ranks
            places[-1] = rank
        target = ChunkTarget(
            archive.root / item.name,
            array.shape[0],
            chunks,
            separator=array.metadata.encode_chunk_key((0,) * array.ndim)[1],  # c.0.0.0
            dtype=cast(ChunkType, item.spec.dtype),
            compressor="blosc" if attributes.capture.granularity == "count" else None,
            place=tuple(places),
            fill=float(item.spec.fill_value),
            archive=archive,
        )
        return ArrayPart(item.name, target, own, chosen)

    if chunks[1] == item.row[0] == len(layers):
        return [part(0, None)]
    return [part(layer, index) for index, layer in enumerate(layers)]
