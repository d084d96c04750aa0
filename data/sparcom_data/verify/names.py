"""Names of rows and layers in findings, as users know them: instruction ids, tokens, the model's layer numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sparcom_data.archive import Archive
from sparcom_data.errors import ArchiveError
from sparcom_data.schema.metadata import Component

MAX_NAMES = 3


class Names:
    """Names of complete instructions, their rows and the layers of a component."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._table = archive.instructions
        self._counted = archive.granularity == "count"
        complete = self._table.complete
        complete = complete if self._counted else complete[self._table.token_length[complete] > 0]
        self._order = complete[np.argsort(self._table.token_start[complete], kind="stable")]
        self._starts = self._table.token_start[self._order]
        self._stops = self._starts + self._table.token_length[self._order]

    def layers(self, component: Component) -> list[int]:
        """Return the layers of a component's layer axis, numbered as in the model."""
        model = self._archive.attributes.model
        if component == "neuron" or model.moe is None:
            return model.layer_ids
        return model.moe.layer_ids

    def overlapping(self, start: int, stop: int) -> list[int]:
        """Return the complete instructions that overlap rows [start, stop) of the first axis, in row order."""
        if self._counted:
            return [int(index) for index in self._table.complete if start <= index < stop]
        return [int(index) for index in self._order[(self._starts < stop) & (self._stops > start)]]

    def instructions(self, indices: Iterable[int]) -> str:
        """Return the ids of instructions, or the first few and the number of the rest."""
        ids = [repr(self._table.id[index]) for index in indices]
        return ", ".join(ids[:MAX_NAMES]) + (f" and {len(ids) - MAX_NAMES} more" if len(ids) > MAX_NAMES else "")

    def position(self, index: int, row: int) -> int:
        """Return the position of a row of the token axis within its instruction."""
        captured = self._archive.attributes.capture.positions
        first = int(self._table.prompt_length[index]) if captured == "response" else 0
        return first + row - int(self._table.token_start[index])

    def row(self, row: int) -> str:
        """Name a row of the token axis: its instruction, and the position and id of its token."""
        owners = self.overlapping(row, row + 1)
        if not owners:
            return f"row {row}, which belongs to no complete instruction"
        try:
            token = f" (id {int(self._archive.read_tokens(row, row + 1)[0][0])})"
        except ArchiveError:
            token = ""
        return f"instruction {self._table.id[owners[0]]!r}, token {self.position(owners[0], row)}{token}"
