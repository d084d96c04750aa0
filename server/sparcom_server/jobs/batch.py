"""The instructions of one job, as the runner reads them from the database.

A whole job may take gigabytes as Python objects, so only a small one is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sparcom_data.instructions import Instruction
from sparcom_server.database.database import Database
from sparcom_server.database.tables import InstructionRow
from sparcom_server.jobs.submission import BATCH, BATCH_CHARACTERS

MAX_DEATHS = 2  # of the engine while one instruction ran alone


@dataclass(frozen=True, slots=True)
class Batch:
    """Instructions of a job.

    suspects: indices to run alone, by ascending number of deaths, so that two kills from outside rarely meet one
    instruction. killers: indices that killed the engine too often.
    """

    instructions: Sequence[Instruction]
    suspects: tuple[int, ...]
    killers: frozenset[int]


class StoredInstructions(Sequence[Instruction]):
    """The instructions of a job, read from the database whenever they are asked for. Blocks.

    parts: index of the first instruction of each part that is read at once, and the number of all instructions.
    """

    def __init__(self, database: Database, job_id: str, parts: Sequence[int]) -> None:
        self._database, self._job_id, self._parts = database, job_id, parts

    def __len__(self) -> int:
        return self._parts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError
        return next(self._read(number, number + 1))

    def __iter__(self) -> Iterator[Instruction]:
        for first, end in pairwise(self._parts):
            yield from self._read(first, end)

    def _read(self, first: int, end: int) -> Iterator[Instruction]:
        row = InstructionRow
        query = select(row.body).where(row.job_id == self._job_id, row.number >= first, row.number < end)
        query = query.order_by(row.number)
        bodies = self._database.transaction(lambda session: list(session.scalars(query)), writes=False)
        bodies.reverse()
        while bodies:
            yield Instruction.model_validate_json(bodies.pop())


def read_batch(database: Database, job_id: str) -> Batch:
    """Return the instructions of a job. Blocks."""

    def work(session: Session) -> list[Any]:
        row = InstructionRow
        query = select(row.number, func.length(row.body), row.suspect, row.deaths).where(row.job_id == job_id)
        return list(session.execute(query.order_by(row.number)))

    parts, suspects, killers, characters, total = [0], dict[int, int](), set[int](), 0, 0
    rows = database.transaction(work, writes=False)
    for number, length, suspect, deaths in rows:
        if number - parts[-1] == BATCH or (characters and characters + length > BATCH_CHARACTERS):
            parts.append(number)
            characters = 0
        characters, total = characters + length, total + length
        if deaths >= MAX_DEATHS:
            killers.add(number)
        elif suspect:
            suspects[number] = deaths
    stored = StoredInstructions(database, job_id, [*parts, len(rows)])
    ordered = sorted(suspects, key=suspects.__getitem__)
    return Batch(tuple(stored) if total <= 2 * BATCH_CHARACTERS else stored, tuple(ordered), frozenset(killers))
