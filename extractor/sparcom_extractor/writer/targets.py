"""Chunks of an archive that one process writes, and their files.

    tensor-parallel rank    its slice of each neuron axis; rank 0 also the router's rows
    pipeline stage          its own layers, one chunk per layer

No chunk has two writers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.errors import DamagedArchiveError, StorageError
from sparcom_data.schema import CapturedArray, captured_arrays
from sparcom_data.schema.metadata import ModelInfo, parse_attributes
from sparcom_data.storage import make_folder, shown_path, type_bytes
from sparcom_data.storage.encoding import decode, encode
from sparcom_data.storage.identity import PinnedArchive

WriteFile = Callable[[Path, Sequence[type_bytes]], None]


@dataclass(frozen=True, slots=True)
class ChunkTarget:
    """Chunks along the first axis of one array, at one chunk index of its other axes.

    folder: of the array. rows: length of the first axis. chunk_shape: (chunk rows, …).
    dtype: uint8 for masks, uint16 and float32 for routes, uint32 for counts; little-endian.
    compressed: by blosc, as counts are; equals the array's metadata.
    separator: see https://zarr-specs.readthedocs.io/en/latest/v3/chunk-key-encodings/default/index.html
    inner_index: chunk index along the other axes; empty means 0 for all.
    fill: value of unwritten rows, as in the array's metadata.
    archive: refuses writes after the archive was removed or replaced; None if `folder` is not in an archive.
    """

    folder: Path
    rows: int
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default=np.dtype(np.uint8))
    compressed: bool = False
    separator: str = "."
    inner_index: tuple[int, ...] = ()
    fill: float = 0
    archive: PinnedArchive | None = None

    @property
    def chunk_bytes(self) -> int:
        """Uncompressed bytes per chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    def fill_rows(self, count: int) -> NDArray[Any]:
        """Return `count` rows of the fill value, (count, …)."""
        return np.full((count, *self.chunk_shape[1:]), self.fill, self.dtype)

    def path(self, chunk: int | str) -> Path:
        """Return the path of a chunk's file; a pattern for chunk "*"."""
        inner_index = self.inner_index or (0,) * (len(self.chunk_shape) - 1)
        return self.folder / self.separator.join(["c", *map(str, (chunk, *inner_index))])

    def stored_chunks(self) -> set[int]:
        """Return the chunks that have a file."""
        paths = self.folder.glob(self.path("*").relative_to(self.folder).as_posix())
        keys = {path: path.relative_to(self.folder).as_posix().split(self.separator)[1] for path in paths}
        return {int(key) for path, key in keys.items() if key.isdecimal() and path == self.path(int(key))}

    def write_chunk(self, chunk: int, values: NDArray[Any], write: WriteFile) -> int:
        """Write one chunk with `write`; return its bytes on disk. Raises StorageError if it fails, or the archive is no
        longer at its path."""
        path = self.path(chunk)
        with self.archive.checked() if self.archive else nullcontext():
            if path.parent != self.folder:
                make_folder(path.parent, within=self.folder)
            parts = encode(values, self.compressed)
            write(path, parts)
        return sum(memoryview(part).nbytes for part in parts)

    def read_chunk(self, chunk: int) -> NDArray[Any]:
        """Read one chunk, (chunk rows, …). Raises DamagedArchiveError if its length or checksum is wrong."""
        path = self.path(chunk)
        try:
            return decode(path.read_bytes(), self.chunk_shape, self.dtype, self.compressed)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            raise DamagedArchiveError(
                f"chunk {shown_path(path)} must be unchanged; {error}. Remove the archive and run it again"
            ) from error


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """One process's chunks of one array.

    name: of the array. row: shape of one row of the process, (layer, …).
    layer: index among the process's layers of the one that these chunks hold; None means all.
    """

    name: str
    target: ChunkTarget
    row: tuple[int, ...]
    layer: int | None = None

    @property
    def holds_counts(self) -> bool:
        """Whether the array holds one count per instruction, not one mask or route per token."""
        return self.target.dtype == np.uint32

    def select_layer(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the part of rows (n, layer, …) that belongs in these chunks."""
        return rows if self.layer is None else rows[:, self.layer : self.layer + 1]


@dataclass(frozen=True, slots=True)
class RankPosition:
    """Position of a process in its engine: tensor-parallel rank, and layers; None means all."""

    rank: int = 0
    layer_ids: Sequence[int] | None = None
    moe_layer_ids: Sequence[int] | None = None

    def layer_indices(self, item: CapturedArray, model: ModelInfo) -> list[int]:
        """Return the indices of the process's layers on the array's layer axis."""
        whole = model.layer_ids if item.component == "neuron" or model.moe is None else model.moe.layer_ids
        own = self.layer_ids if item.component == "neuron" else self.moe_layer_ids
        return [whole.index(layer) for layer in (whole if own is None else own)]


def archive_parts(
    path: Path, position: RankPosition = RankPosition(), run: str | None = None
) -> tuple[list[ArrayPart], int]:
    """Return one process's parts of the archive at `path`, and the archive's number of instructions.
    The archive is locked until its session closes. Raises StorageError if there is no archive, its run id is not `run`
    (None accepts any), or another process removes or resumes it."""
    archive = PinnedArchive(path, run)
    if not archive.folder.lock():
        raise StorageError(f"another process removes or resumes {path}; start again once it has ended")
    with archive.folder.unlocked_on_error():
        return _parts(archive, position)


def _parts(archive: PinnedArchive, position: RankPosition) -> tuple[list[ArrayPart], int]:
    group = zarr.open_group(archive.root, mode="r", use_consolidated=False)
    attributes = parse_attributes(dict(group.attrs), str(archive.path))
    parts = []
    for item in captured_arrays(attributes.model, attributes.capture.granularity):
        if not item.neurons and position.rank > 0:
            continue
        array = zarr.open_array(archive.root / item.name, mode="r")
        split_by_rank = item.neurons and array.chunks[-1] < item.row[-1]
        layers = position.layer_indices(item, attributes.model)
        whole = array.chunks[1] == item.row[0] == len(layers)  # all layers in one chunk
        for own, layer in enumerate([0] if whole else layers):
            target = ChunkTarget(
                archive.root / item.name,
                array.shape[0],
                tuple(array.chunks),
                dtype=np.dtype(item.spec.dtype).newbyteorder("<"),
                compressed=attributes.capture.granularity == "count",
                separator=array.metadata.encode_chunk_key((0,) * array.ndim)[1],  # c.0.0.0
                inner_index=(layer, *[0] * (array.ndim - 3), position.rank if split_by_rank else 0),
                fill=float(item.spec.fill_value),
                archive=archive,
            )
            parts.append(ArrayPart(item.name, target, (len(layers), *array.chunks[2:]), None if whole else own))
    return parts, zarr.open_array(archive.root / "instruction/state", mode="r").shape[0]
