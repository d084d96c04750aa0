"""The instructions of a job: the same whether they are held in memory or read in parts."""

from __future__ import annotations

import asyncio

import pytest

from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.database.database import Database
from sparcom_server.jobs import batch as batches
from sparcom_server.jobs.batch import StoredInstructions, read_batch
from sparcom_server.jobs.store import JobStore
from sparcom_server.jobs.submission import Submission


@pytest.mark.parametrize(("count", "characters"), [(1, 0), (7, 0), (7, 50), (7, 10_000), (2500, 40_000)])
def test_a_large_batch_is_read_in_parts(
    database: Database, monkeypatch: pytest.MonkeyPatch, count: int, characters: int
) -> None:
    """Iteration, indices and slices give what was submitted, for any size of the parts."""
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", characters)
    items = tuple(Instruction(id=f"i{number}", text="é" * (1 + number % 50)) for number in range(count))
    submission = Submission((("m", "a"),), ExtractionOptions(), "", "")
    job, _ = asyncio.run(JobStore(database, 10).submit("", submission, items))
    found = read_batch(database, job.id).instructions
    assert isinstance(found, StoredInstructions) == (characters < 10_000 or count > 1000)
    assert len(found) == count
    assert list(found) == list(found) == list(items)
    assert (found[0], found[-1], tuple(found[1:3])) == (items[0], items[-1], items[1:3])
    with pytest.raises(IndexError):
        found[count]


def test_a_small_batch_is_held(database: Database) -> None:
    """A job of few characters is read once."""
    items = (Instruction(id="a", text="x"),)
    job, _ = asyncio.run(
        JobStore(database, 10).submit("", Submission((("m", "a"),), ExtractionOptions(), "", ""), items)
    )
    assert read_batch(database, job.id).instructions == items
