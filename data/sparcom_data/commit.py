"""Commit instructions to an archive: token ids, positions and responses first, states last.

An archive of counts has no `token/`: the caller has compared ids and positions, and they are not stored.

One process owns `instruction/` and `token/` of an archive, so each write is a plain read-modify-write without a lock.
The order within a commit makes `state` trustworthy: everything that state 1 promises is on disk before it is set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.errors import StorageError
from sparcom_data.schema import TOKEN_ARRAYS, State
from sparcom_data.schema.metadata import parse_attributes
from sparcom_data.storage import FixedStore, storage_error
from sparcom_data.storage.identity import PinnedArchive


@dataclass(frozen=True, slots=True)
class CompletedInstruction:
    """An instruction whose masks or counts are durable.

    ids, positions: int32 (rows,), reported by the worker, one per captured or counted token. row: first row on the
    token axis, unused if the archive holds counts. capacity: rows reserved there; those without a token are cleared of
    what an interrupted run may have left.
    """

    index: int
    row: int
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    response: str = ""
    capacity: int = 0

    def padded(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return ids or positions with -1 in the reserved rows that hold no token."""
        return np.pad(values, (0, max(0, self.capacity - len(values))), constant_values=int(TOKEN_ARRAYS[0].fill_value))


class ArchiveCommitter:
    """Writes the arrays that the submitting process owns.

    Every method raises StorageError if the archive was removed or replaced, and leaves the new folder unchanged.

    Args:
        archive: the result of `create_archive`, or the path of an archive, which is then held open.
    """

    def __init__(self, archive: PinnedArchive | Path) -> None:
        self._archive = PinnedArchive(archive) if isinstance(archive, Path) else archive
        with self._archive.checked():
            self._open()
        attributes = parse_attributes(dict(self._root.attrs), str(self._archive.path))
        self._has_token_rows = attributes.capture.granularity == "token"

    def complete(self, batch: Sequence[CompletedInstruction]) -> None:
        """Mark instructions complete: write their token ids, positions, responses and lengths, then their states."""
        if not batch:
            return
        with self._archive.checked():
            if self._has_token_rows:
                self._write_rows("token/id", [(item.row, item.padded(item.ids)) for item in batch])
                self._write_rows("token/position", [(item.row, item.padded(item.positions)) for item in batch])
            self._write_items("instruction/response", {item.index: item.response for item in batch if item.response})
            self._write_items("instruction/token_length", {item.index: len(item.ids) for item in batch})
            self._archive.check()  # before state 1 is set: the worker's rows must lie in this archive too
            self._write_items("instruction/state", {item.index: int(State.COMPLETE) for item in batch})

    def fail(self, reasons: Mapping[int, str]) -> None:
        """Mark instructions failed, each with its reason."""
        with self._archive.checked():
            self._write_items("instruction/error", reasons)
            self._write_items("instruction/state", dict.fromkeys(reasons, int(State.FAILED)))

    def cancel(self, indices: Sequence[int]) -> None:
        """Mark instructions cancelled."""
        with self._archive.checked():
            self._write_items("instruction/state", dict.fromkeys(indices, int(State.CANCELLED)))

    def restart(self, indices: Sequence[int], engine: Mapping[str, Any] | None = None) -> None:
        """Make instructions pending again, without what an interrupted commit left of them.

        Args:
            indices: pending or cancelled instructions.
            engine: the section `engine` of the engine that runs them; None keeps the archive's.
        """
        with self._archive.checked():
            for name, value in (("error", ""), ("response", ""), ("token_length", 0), ("state", int(State.PENDING))):
                self._write_items(f"instruction/{name}", dict.fromkeys(indices, value))
        if engine is not None:
            self._write_attributes({"engine": dict(engine)})

    def close(self, **engine: int) -> None:
        """Mark the archive complete: nothing writes to it any more. engine: further facts for that section."""
        section: dict[str, Any] = dict(self._root.attrs["sparcom"])  # type: ignore[arg-type]
        self._write_attributes({"state": "complete", "engine": section["engine"] | engine})

    def _write_attributes(self, changes: dict[str, Any]) -> None:
        """Change fields of the attribute `sparcom`."""
        with self._archive.checked():
            # Opened with its consolidated metadata, so that the update keeps it.
            root = zarr.open_group(FixedStore(self._archive.root), mode="r+")
            section: dict[str, Any] = dict(root.attrs["sparcom"])  # type: ignore[arg-type]
            try:
                root.update_attributes({"sparcom": section | changes})
            except OSError as error:
                raise storage_error(self._archive.path, error) from error

    def _open(self) -> None:
        self._store = FixedStore(self._archive.root)
        self._root = zarr.open_group(self._store, mode="r+", use_consolidated=False)

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            array = self._root[name]
        except KeyError as error:
            raise StorageError(
                f"an archive must stay whole until its job has ended; {name} was removed from {self._archive.path}. "
                "Run the instructions again"
            ) from error
        assert isinstance(array, zarr.Array)  # noqa: S101  (written by create_archive)
        # zarr removes a chunk that becomes all fill value, such as lengths that are all 0; a missing chunk is damage.
        return array.with_config({"write_empty_chunks": True})

    def _write_rows(self, name: str, runs: Sequence[tuple[int, NDArray[np.int32]]]) -> None:
        """Write runs of rows with one read and one write: a batch lies close together on the token axis."""
        start = min(row for row, _ in runs)
        stop = max(row + len(values) for row, values in runs)
        array = self._array(name)
        block = np.array(array[start:stop])
        for row, values in runs:
            block[row - start : row - start + len(values)] = values
        self._write(array, start, block)

    def _write_items(self, name: str, items: Mapping[int, object]) -> None:
        if not items:
            return
        start, stop = min(items), max(items) + 1
        array = self._array(name)
        block = np.array(array[start:stop])
        for index, value in items.items():
            block[index - start] = value
        self._write(array, start, block)

    def _write(self, array: zarr.Array[Any], start: int, block: NDArray[Any]) -> None:
        try:
            array[start : start + len(block)] = block
        except (OSError, StorageError) as error:
            # Other chunks of this block may still be in flight; they must not land after the next write.
            self._store.close()
            with contextlib.suppress(OSError):  # if the archive is gone, the closed store refuses later writes
                self._open()
            if isinstance(error, StorageError):
                raise
            raise storage_error(self._archive.path / array.path, error) from error
