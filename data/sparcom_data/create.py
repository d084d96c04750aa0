"""Create an archive with all arrays, attributes and instruction columns, before the first token runs.

The archive is built beside its final name and renamed into place, so a failure leaves nothing half-written. Masks and
counts come later, from the worker that computes them.
"""

from __future__ import annotations

import math
import os
import shutil
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from sparcom_data.errors import ArchiveExistsError, InvalidInputError, StorageError
from sparcom_data.schema import (
    INSTRUCTION_ARRAYS,
    INSTRUCTION_CHUNK,
    MASK_KEY_SEPARATOR,
    SPECIAL_LENGTH,
    STRING_CHUNK,
    TEMPLATE_LENGTH,
    TOKEN_ARRAYS,
    TOKEN_CHUNK,
    TOKEN_ORIGIN,
    ArraySpec,
    CapturedArray,
    Origin,
    State,
    captured_arrays,
)
from sparcom_data.schema.layout import Layout, choose_chunk_instructions, choose_chunk_tokens
from sparcom_data.schema.metadata import ArchiveAttributes, EngineInfo
from sparcom_data.storage import (
    FOLDER_MODE,
    DurableStore,
    make_folder,
    partial_name,
    rename_new,
    storage_error,
    sync_path,
)
from sparcom_data.storage.identity import PinnedArchive, PinnedFolder


@dataclass(frozen=True, slots=True)
class _Storage:
    """Storage of one array: the codecs after the raw bytes, and the separator in names of chunk files."""

    codecs: tuple[BytesBytesCodec, ...]
    separator: str


_COLUMNS = _Storage((ZstdCodec(level=3), Crc32cCodec()), "/")
# Masks hardly compress, so they are stored uncompressed. One folder for all files, instead of two folders per file,
# halves the cost of writing. Both measured: docs/decisions/0027-chunks-of-8-mib.md.
_MASKS = _Storage((Crc32cCodec(),), MASK_KEY_SEPARATOR)
# Counts are small numbers in four bytes: after the byte shuffle, three of four planes are nearly empty.
_COUNTS = _Storage(
    (BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()), MASK_KEY_SEPARATOR
)


@dataclass(frozen=True, slots=True)
class InstructionColumns:
    """Columns of `instruction/` that are known at submission, one entry per instruction.

    A non-empty `error` stores the instruction as failed, with this reason. `origin`: uint8 (T,) per prompt, see
    `Origin`; None omits the arrays of token origins.
    """

    id: Sequence[str]
    category: Sequence[str]
    source: Sequence[str]
    text: Sequence[str]
    error: Sequence[str]
    origin: Sequence[NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in ("id", "category", "source", "text", "error")}
        lengths |= set() if self.origin is None else {len(self.origin)}
        if len(lengths) != 1:
            raise InvalidInputError(f"all instruction columns must have the same length; they have {sorted(lengths)}")


def create_archive(
    path: Path,
    attributes: ArchiveAttributes,
    columns: InstructionColumns,
    layout: Layout,
    *,
    chunk_tokens: int | None = None,
    chunk_instructions: int | None = None,
) -> PinnedArchive:
    """Create the archive at `path`, in state open, with every runnable instruction pending.

    Only the owner may read it.

    Args:
        path: where to create the archive; missing parent folders are created.
        attributes: the root attribute `sparcom`; it gets a new run id unless it has one.
        columns: the columns of `instruction/` known so far.
        layout: rows of each instruction; in archives of counts, the rows that it would have.
        chunk_tokens: rows per mask chunk; by default chosen from their size.
        chunk_instructions: instructions per count chunk; by default chosen from their size.

    Returns:
        The archive, held open under an advisory lock, so that nothing removes it while a job may write to it.

    Raises:
        InvalidInputError: tensor-parallel ranks cannot split the model's widths; see `part_of_row`.
        ArchiveExistsError: something is at `path`; it is left unchanged.
        StorageError: the file system refused; nothing is left behind.
    """
    require_new_name(path)
    attributes = attributes.model_copy(update={"run": attributes.run or uuid.uuid4().hex})
    building = partial_name(path)
    store: DurableStore | None = None
    try:
        make_folder(path.parent)
        folder = _new_folder(building)
        store = DurableStore(folder.root)
        _build(store, attributes, columns, layout, chunk_tokens, chunk_instructions)
        _take_name(building, path)
        return PinnedArchive(path, attributes.run, folder)
    except OSError as error:
        raise storage_error(path, error) from error
    except StorageError as error:
        raise type(error)(str(error).replace(building.name, path.name)) from error
    finally:
        if store is not None:
            store.close()  # before the removal: a write in flight would recreate a folder
        shutil.rmtree(building, ignore_errors=True)


def _new_folder(path: Path) -> PinnedFolder:
    """Create and lock a folder, so that a service that starts now does not remove it as a leftover."""
    path.mkdir(FOLDER_MODE)
    folder = PinnedFolder(path)
    if not folder.lock() or not folder.is_at(path):
        raise StorageError(f"{path} was removed by another process during its creation; try again")
    return folder


def _take_name(building: Path, path: Path) -> None:
    try:
        rename_new(building, path)
    except FileExistsError as error:  # another process took the name first
        raise _exists(path) from error
    sync_path(path.parent)


def require_new_name(path: Path) -> None:
    """Raise ArchiveExistsError if something is at `path`, even a dangling link."""
    if os.path.lexists(path):
        raise _exists(path)


def _exists(path: Path) -> ArchiveExistsError:
    return ArchiveExistsError(f"an archive must have a new name: {path} exists. Choose another name or remove it first")


def _build(
    store: DurableStore,
    attributes: ArchiveAttributes,
    columns: InstructionColumns,
    layout: Layout,
    chunk_tokens: int | None,
    chunk_instructions: int | None,
) -> None:
    root = zarr.create_group(store, attributes={"sparcom": attributes.model_dump(mode="json")})
    _create_columns(root, columns, layout)
    counts = attributes.capture.granularity == "count"
    if not counts:
        for spec in TOKEN_ARRAYS:
            _create_array(root, spec, (layout.tokens,), (TOKEN_CHUNK,), _COLUMNS)
        if columns.origin is not None:
            rows = _create_array(root, TOKEN_ORIGIN, (layout.tokens,), (TOKEN_CHUNK,), _COLUMNS)
            rows[:] = _origin_rows(columns.origin, layout)
    _create_captured(root, attributes, layout, chunk_instructions if counts else chunk_tokens)
    _consolidate(store)


def recreate_captured(folder: Path, attributes: ArchiveAttributes, layout: Layout) -> None:
    """Create the arrays that the worker fills again, empty, with the chunks of the engine in `attributes`.

    An interruption leaves arrays missing: call it again.

    Raises:
        InvalidInputError: as `create_archive`; nothing is changed.
        StorageError: the file system refused.
    """
    items = captured_arrays(attributes.model, attributes.capture.granularity)
    for item in items:
        part_of_row(item, attributes.engine)
    store = DurableStore(folder)
    try:
        for item in items:
            shutil.rmtree(folder / item.name, ignore_errors=True)
        root = zarr.open_group(store, mode="r+", use_consolidated=False)
        _create_captured(root, attributes, layout, None)
        _consolidate(store)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        store.close()


def _consolidate(store: DurableStore) -> None:
    with warnings.catch_warnings():
        # Readers over HTTP cannot list a folder; consolidated metadata is how zarr-python and xarray find the arrays.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _create_columns(root: zarr.Group, columns: InstructionColumns, layout: Layout) -> None:
    instructions = len(columns.id)
    values = _initial_values(columns, layout)
    for spec in INSTRUCTION_ARRAYS:
        chunk = STRING_CHUNK if spec.dtype == "string" else INSTRUCTION_CHUNK
        array = _create_array(root, spec, (instructions,), (chunk,), _COLUMNS)
        array[:] = values.get(spec.name, _filled(spec, instructions))
    for spec, origin in ((TEMPLATE_LENGTH, Origin.TEMPLATE), (SPECIAL_LENGTH, Origin.SPECIAL)):
        if columns.origin is not None:
            array = _create_array(root, spec, (instructions,), (INSTRUCTION_CHUNK,), _COLUMNS)
            array[:] = np.array([_length_of(origin, one) for one in columns.origin], dtype=np.int32)


def _length_of(origin: Origin, one: NDArray[np.uint8]) -> int:
    """Return how many tokens of a prompt have this origin; -1 if any origin is unknown."""
    return -1 if (one == Origin.UNKNOWN).any() else int((one == origin).sum())


def _origin_rows(origins: Sequence[NDArray[np.uint8]], layout: Layout) -> NDArray[np.uint8]:
    """Return `token/origin`, uint8 (token,): per instruction, the prompt's origins, then the reserved response rows."""
    rows = np.full(layout.tokens, Origin.RESPONSE, dtype=np.uint8)
    for origin, start, room, first in zip(
        origins, layout.token_start.tolist(), layout.capacity.tolist(), layout.first_position.tolist(), strict=True
    ):
        if room and not first:  # it can run, and its prompt is captured
            rows[start : start + len(origin)] = origin
    return rows


def _create_captured(
    root: zarr.Group,
    attributes: ArchiveAttributes,
    layout: Layout,
    chunk_rows: int | None,
) -> None:
    """Create the arrays that the worker fills: one row per token, or per instruction in archives of counts."""
    counts = attributes.capture.granularity == "count"
    rows = len(layout.capacity) if counts else layout.tokens
    choose = choose_chunk_instructions if counts else choose_chunk_tokens
    items = captured_arrays(attributes.model, attributes.capture.granularity)
    largest = max((_bytes_of_process(item, attributes.engine) for item in items), default=1)
    # All arrays share one chunk length: an instruction is durable once its chunks of every array are.
    chunk_rows = chunk_rows or choose(largest, rows)
    for item in items:
        chunks = (chunk_rows, *part_of_row(item, attributes.engine))
        size = {"size": item.neurons} if item.neurons else {}
        _create_array(root, item.spec, (rows, *item.row), chunks, _COUNTS if counts else _MASKS, size)


def _bytes_of_process(item: CapturedArray, engine: EngineInfo) -> int:
    """Return the bytes of a row that one engine process writes, over all its layers."""
    part = list(part_of_row(item, engine))
    part[0] = -(-item.row[0] // engine.pipeline_parallel_size)
    return item.row_bytes * math.prod(part) // max(1, math.prod(item.row))


def part_of_row(item: CapturedArray, engine: EngineInfo) -> tuple[int, ...]:
    """Return the part of a row that one engine process writes; a chunk holds this part.

    A tensor-parallel rank writes a slice of the neuron axis (the last one); the first rank writes the router's rows.
    Pipeline stages may differ in their number of layers, so a chunk then holds one layer.

    Raises:
        InvalidInputError: the neuron axis cannot be split into equal parts on byte boundaries.
    """
    part = list(item.row)
    ranks = engine.tensor_parallel_size
    if item.neurons and ranks > 1:
        if item.neurons % (8 * ranks):
            raise InvalidInputError(split_problem(item.neurons, ranks, item.name))
        part[-1] //= ranks
    if engine.pipeline_parallel_size > 1:
        part[0] = 1
    return tuple(part)


def split_problem(neurons: int, ranks: int, what: str) -> str:
    """Return the error message for a width that tensor-parallel ranks cannot split."""
    return (
        f"each tensor-parallel rank writes whole bytes of a mask, so a width must be a multiple of 8 × ranks; {what} "
        f"has {neurons} neurons for {ranks} ranks. Use a smaller tensor_parallel_size"
    )


def _initial_values(columns: InstructionColumns, layout: Layout) -> dict[str, Any]:
    failed = np.array([bool(error) for error in columns.error], dtype=bool)
    return {
        "instruction/id": _strings(columns.id),
        "instruction/category": _strings(columns.category),
        "instruction/source": _strings(columns.source),
        "instruction/text": _strings(columns.text),
        "instruction/error": _strings(columns.error),
        "instruction/token_start": layout.token_start,
        "instruction/prompt_length": layout.prompt_length,
        "instruction/state": np.where(failed, State.FAILED, State.PENDING).astype(np.uint8),
    }


def _filled(spec: ArraySpec, length: int) -> NDArray[Any]:
    return _strings([""] * length) if spec.dtype == "string" else np.full(length, spec.fill_value, dtype=spec.dtype)


def _strings(values: Sequence[str]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=np.dtypes.StringDType())
    for index, value in enumerate(values):  # `values` may read each one when it is asked for
        array[index] = value
    return array


def _create_array(
    root: zarr.Group,
    spec: ArraySpec,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    storage: _Storage,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    unit = {"unit": spec.unit} if spec.unit else {}
    if storage.separator == "/":  # made now, so that no later chunk needs a new folder
        assert isinstance(root.store, DurableStore)  # noqa: S101  (create_archive passes one)
        make_folder(root.store.root / spec.name / "c", within=root.store.root)
    return root.create_array(
        spec.name,
        shape=shape,
        dtype=spec.dtype,
        chunks=tuple(max(1, min(chunk, size)) for chunk, size in zip(chunks, shape, strict=True)),
        fill_value=spec.fill_value,
        compressors=list(storage.codecs),
        dimension_names=spec.dimensions,
        attributes={"description": spec.description, **unit, **(attributes or {})},
        chunk_key_encoding={"name": "default", "separator": storage.separator},
        config={"write_empty_chunks": True},
    )
