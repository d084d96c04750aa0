"""Read archives from a local folder or an HTTP address, with any codec that zarr supports.

Every read of rows is checked: a chunk that is missing or fails its CRC32C raises an error that names the array and the
chunk. Plain zarr returns zeros for a missing chunk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError, NodeTypeValidationError

from sparcom_data.describe import described, described_html
from sparcom_data.errors import (
    ArchiveError,
    ArchiveNotFoundError,
    DamagedArchiveError,
    NotAnArchiveError,
    StorageError,
    UnsupportedArchiveError,
)
from sparcom_data.raw_rows import raw_rows
from sparcom_data.schema import SPECIAL_LENGTH, CapturedArray, State, captured_arrays, mask_bytes
from sparcom_data.schema.metadata import ArchiveAttributes, Component, Granularity, MoeInfo, parse_attributes
from sparcom_data.storage.beneath import NoLinkStore
from sparcom_data.storage.identity import ArchiveWatch, RemoteWatch, identity_of
from sparcom_data.storage.remote import RemoteStore, address_remedy

REMOTE_CHECK_SECONDS = 5.0  # between two checks of zarr.json over HTTP


@dataclass(frozen=True, slots=True)
class InstructionTable:
    """The columns of `instruction/`, one entry per instruction, in the order of submission.

    token_start: int64 (n,); prompt_length, token_length: int32 (n,); state: uint8 (n,), see `State`.
    """

    id: list[str]
    category: list[str]
    source: list[str]
    token_start: NDArray[np.int64]
    prompt_length: NDArray[np.int32]
    token_length: NDArray[np.int32]
    state: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def complete(self) -> NDArray[np.int64]:
        """Indices of the instructions that a reader may trust, int64."""
        return np.flatnonzero(self.state == State.COMPLETE)


def open_archive(path: str | Path, *, follow_links: bool = True, headers: Mapping[str, str] | None = None) -> Archive:
    """Open an archive for reading.

    Args:
        path: a folder, or an address `http://…/v1/archives/NAME/zarr` of a SPARCOM server.
        follow_links: whether links inside the folder are followed; False treats each as a missing file.
        headers: sent with every request to an address, such as `Authorization`.

    Raises:
        ArchiveNotFoundError: nothing is there.
        NotAnArchiveError: something else is there.
        NewerFormatError: the archive has a later format version.
        StorageError: no server answers, or the operating system refused the read.
    """
    where = str(path)
    remote = "://" in where
    if not remote and not Path(where).exists():
        raise ArchiveNotFoundError(f"there is no archive at {where}: check the path")
    try:
        # Made before the archive is opened, so that any later replacement is noticed.
        watch = None if remote else ArchiveWatch(Path(where))
        store = RemoteStore.at(where, headers) if remote else where if follow_links else NoLinkStore(where)
        group = zarr.open_group(store, mode="r")
    except (
        GroupNotFoundError,
        NodeTypeValidationError,
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,  # zarr's own error, for metadata that is JSON but not an object
    ) as error:
        if remote and isinstance(error, FileNotFoundError):
            raise ArchiveNotFoundError(f"there is no archive at {where}: {address_remedy(where)}") from error
        raise NotAnArchiveError(
            f"a SPARCOM archive is a Zarr v3 group; {where} is not ({type(error).__name__}). "
            "Give the path of an archive written by `sparcom extract` or `sparcom serve`"
        ) from error
    except NotADirectoryError as error:
        raise NotAnArchiveError(f"a SPARCOM archive is a folder; {where} is a file") from error
    except OSError as error:
        remedy = "Check the address, and that the server runs" if remote else "Check its permissions"
        raise StorageError(f"{where} cannot be read ({error}). {remedy}") from error
    return Archive(where, group, watch or RemoteWatch(where, group))


class Archive:
    """An open archive of masks or of counts. Blocks are read on demand and not cached.

    Members that apply to one kind (`tokens`, `read_active`, `read_counts`, …) raise UnsupportedArchiveError for the
    other. Reads raise an error if the archive was removed or replaced: see `require_same`.
    """

    def __init__(self, path: str, group: zarr.Group, watch: ArchiveWatch | RemoteWatch) -> None:
        self.path = path
        self.group = group
        self._watch = watch
        self._identity = identity_of(group.attrs.get("sparcom"))
        self._next_check = 0.0
        self.attributes: ArchiveAttributes = parse_attributes(dict(group.attrs), path)

    def __repr__(self) -> str:
        return described(self.path, self.attributes, lambda: self.instructions.state)

    def _repr_html_(self) -> str:
        return described_html(self.path, self.attributes, lambda: self.instructions.state)

    @cached_property
    def instructions(self) -> InstructionTable:
        """The instruction table, read once."""
        state = self.column("state")  # read first: a running job sets state 1 last
        return InstructionTable(
            id=self.strings("id"),
            category=self.strings("category"),
            source=self.strings("source"),
            token_start=self.column("token_start"),
            prompt_length=self.column("prompt_length"),
            token_length=self.column("token_length"),
            state=state,
        )

    def require_same(self) -> None:
        """Check that the opened archive is still the one at its path or address.

        Each read of rows checks this: locally every time, over HTTP every few seconds. Call it after a pass over HTTP.

        Raises:
            ArchiveNotFoundError: it was removed. DamagedArchiveError: another archive took its place.
            StorageError: no server answers.
        """
        try:
            self._watch.check(self._identity)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read ({error}). Check that it can be reached") from error

    def strings(self, name: str) -> list[str]:
        """Return a string column of `instruction/`: id, category, source, text, response or error."""
        return [str(value) for value in self.column(name)]

    @property
    def granularity(self) -> Granularity:
        """`token` if the archive holds one mask per token, `count` if it holds sums per instruction."""
        return self.attributes.capture.granularity

    @property
    def tokens(self) -> int:
        """Length of the token axis, reserved rows included; archives of masks only."""
        self._require("token")
        return int(self.array("token/id").shape[0])

    @property
    def knows_origins(self) -> bool:
        """Whether the origin of prompt tokens is recorded: as `token/origin`, or as lengths in archives of counts."""
        return SPECIAL_LENGTH.name in self.group

    @property
    def components(self) -> list[Component]:
        """The captured components of the model."""
        return self.attributes.model.components

    @property
    def captured(self) -> tuple[CapturedArray, ...]:
        """The arrays that the worker wrote, from the attributes."""
        return captured_arrays(self.attributes.model, self.granularity)

    @property
    def moe(self) -> MoeInfo | None:
        """The MoE layers of the model, or None."""
        return self.attributes.model.moe

    @property
    def layers(self) -> int:
        """Length of the layer axis: dense FFN layers."""
        return len(self.attributes.model.layer_ids)

    @property
    def neurons(self) -> int:
        """Neurons per dense layer; mask bits past the last neuron are 0."""
        return self.attributes.model.neurons

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one dense layer's mask; for counts, of the mask that they were computed from."""
        return mask_bytes(self.neurons)

    @property
    def chunk_tokens(self) -> int:
        """Rows per chunk of the largest mask array; read blocks in multiples of it."""
        self._require("token")
        return self._largest_chunk

    @property
    def chunk_instructions(self) -> int:
        """Instructions per chunk of the largest count array; read blocks in multiples of it."""
        self._require("count")
        return self._largest_chunk

    @cached_property
    def _largest_chunk(self) -> int:
        largest = max(self.captured, key=lambda item: item.row_bytes)
        return int(self.array(largest.name).chunks[0])

    def read_active(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Packed masks of the dense layers, rows [start, stop): uint8 (rows, layer, neuron_byte), neuron i is bit i % 8
        of byte i // 8.

        Raises:
            DamagedArchiveError: a chunk is missing or fails its checksum.
            UnsupportedArchiveError: the archive holds counts, or its model has no dense layers.
        """
        return self._read_captured("token", "neuron", "active", start, stop)

    def read_routes(self, start: int, stop: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Top-k experts of rows [start, stop) and their combine weights: uint16 and float32 (rows, moe_layer, choice).
        Raises the errors of `read_active`; the model must have MoE layers."""
        experts = self._read_captured("token", "router", "expert", start, stop)
        return experts, self._read_captured("token", "router", "weight", start, stop)

    def read_expert_active(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Packed masks of the top-k experts, rows [start, stop): uint8 (rows, moe_layer, choice, neuron_byte). Raises
        the errors of `read_active`; the model must have MoE layers."""
        return self._read_captured("token", "expert_neuron", "active", start, stop)

    def read_shared_active(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Packed masks of the shared experts, rows [start, stop): uint8 (rows, moe_layer, neuron_byte). Raises the
        errors of `read_active`; the model must have shared experts."""
        return self._read_captured("token", "shared_expert_neuron", "active", start, stop)

    def read_counts(self, start: int, stop: int, component: Component = "neuron") -> NDArray[np.uint32]:
        """Counts of instructions [start, stop): the tokens at which each neuron is active, uint32 (instructions, layer,
        neuron). Other components have the shape (instructions, moe_layer, …), see `schema`.

        Raises:
            DamagedArchiveError: a chunk is missing or fails its checksum.
            UnsupportedArchiveError: the archive holds masks, or its model does not have the component.
        """
        return self._read_captured("count", component, "count", start, stop)

    def _read_captured(
        self, granularity: Granularity, component: Component, what: str, start: int, stop: int
    ) -> NDArray[Any]:
        self._require(granularity)
        if component not in self.components:
            raise UnsupportedArchiveError(
                f"this needs the component {component!r}; {self.path} has {', '.join(map(repr, self.components))}: its "
                "model has no such layers"
            )
        return self.read_rows(f"{component}/{what}", start, stop)

    def read_tokens(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids and positions of rows [start, stop), int32 (rows,) each; -1: never written. Masks only."""
        self._require("token")
        return self.read_rows("token/id", start, stop), self.read_rows("token/position", start, stop)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return the Zarr array `name`.

        Raises:
            NotAnArchiveError: the archive lacks it.
        """
        try:
            node = self.group[name]
        except KeyError as error:
            raise NotAnArchiveError(f"the archive {self.path} lacks the array {name}") from error
        if not isinstance(node, zarr.Array):
            raise NotAnArchiveError(f"{name} of the archive {self.path} must be an array; it is a group")
        return node

    def missing_chunks(self, name: str, start: int, stop: int) -> list[str]:
        """Return the keys of the chunks of rows [start, stop) that are missing from the store."""
        return [key for key in self._chunk_keys(self.array(name), start, stop) if not self._exists(name, key)]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of `instruction/`, one entry per instruction."""
        full = f"instruction/{name}"
        return self.read_rows(full, 0, int(self.array(full).shape[0]))

    def _require(self, granularity: Granularity) -> None:
        if self.granularity == granularity:
            return
        holds, lacks, remedy = {
            "count": ("one count per instruction and neuron", "token rows or masks", "Read counts, or extract again"),
            "token": ("one mask per token", "counts", "Read masks and count them, or extract again"),
        }[self.granularity]
        raise UnsupportedArchiveError(
            f"this needs granularity {granularity!r}; {self.path} has {self.granularity!r}: it holds {holds} and no "
            f"{lacks}. {remedy} with granularity {granularity!r}"
        )

    def read_rows(self, name: str, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return rows [start, stop) of an array, checked.

        Args:
            out: memory to read into and return: C-contiguous, with the array's dtype and the shape of these rows.
                After an error its contents are undefined.

        Raises:
            DamagedArchiveError: a chunk is missing or fails its checksum, or another archive took this one's place.
            ArchiveNotFoundError: the archive was removed.
        """
        try:
            rows = self._read_rows(name, start, stop, out)
        except ArchiveError:
            self.require_same()  # raises the clearer error if the archive is gone
            raise
        if isinstance(self._watch, ArchiveWatch) or time.monotonic() >= self._next_check:
            self.require_same()
            self._next_check = time.monotonic() + REMOTE_CHECK_SECONDS
        return rows

    def _read_rows(self, name: str, start: int, stop: int, out: NDArray[Any] | None) -> NDArray[Any]:
        array = self.array(name)
        if not 0 <= start <= stop <= array.shape[0]:
            raise IndexError(f"rows [{start}, {stop}) are not within the {array.shape[0]} rows of {name}")
        if out is not None:
            _require_fit(out, array, stop - start)
        if (raw := raw_rows(array)) is not None:
            rows = np.empty((stop - start, *raw.row), dtype=raw.dtype) if out is None else out
            if raw.read_into(rows, start):
                return rows
        rows = self._read_plainly(name, array, start, stop)
        if out is None:
            return rows
        out[...] = rows
        return out

    def _read_plainly(self, name: str, array: zarr.Array[Any], start: int, stop: int) -> NDArray[Any]:
        """Return rows as zarr reads them, or raise an error that names the chunk."""
        if missing := self.missing_chunks(name, start, stop):
            raise DamagedArchiveError(self._damage(name, missing[0], "is missing"))
        try:
            return np.asarray(array[start:stop])
        except (ValueError, RuntimeError, OSError) as error:
            raise DamagedArchiveError(self._explain(array, start, stop, error)) from error

    def _explain(self, array: zarr.Array[Any], start: int, stop: int, error: Exception) -> str:
        """Name the first chunk that cannot be read."""
        step = array.chunks[0]
        for first in range(start - start % step, stop, step):
            try:
                array[first : min(first + step, array.shape[0])]
            except (ValueError, RuntimeError, OSError) as cause:
                key = self._chunk_keys(array, first, first + 1)[0]
                return self._damage(array.path, key, f"cannot be read ({cause})")
        return f"array {array.path} of {self.path} could not be read: {error}"

    def _damage(self, name: str, key: str, what: str) -> str:
        return (
            f"chunk {key} of array {name} in {self.path} {what}. The archive is damaged: restore it from a copy or "
            "run its instructions again"
        )

    @staticmethod
    def _chunk_keys(array: zarr.Array[Any], start: int, stop: int) -> list[str]:
        if start >= stop:
            return []
        step = array.chunks[0]
        others = [range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
        rows = range(start // step, -(-stop // step))
        return [array.metadata.encode_chunk_key(index) for index in product(rows, *others)]

    def _exists(self, name: str, key: str) -> bool:
        return bool(sync(self.group.store.exists(f"{self.group.path}/{name}/{key}".lstrip("/"))))


def _require_fit(out: NDArray[Any], array: zarr.Array[Any], rows: int) -> None:
    """Raise ValueError if `out` does not fit these rows."""
    shape = (rows, *array.shape[1:])
    if out.shape != shape or out.dtype != array.dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"memory for {rows} rows of {array.path} must be writable and C-contiguous, {array.dtype} {shape}; it is "
            f"{out.dtype} {out.shape}"
        )
