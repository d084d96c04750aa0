"""Limits per key: queued instructions, tokens per day, storage, requests per minute, event streams."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sparcom_server.access.limits import DAY, RequestLimits, check_storage, check_submission
from sparcom_server.access.principal import ANONYMOUS, Principal
from sparcom_server.database.database import Database, now
from sparcom_server.database.tables import ArchiveRow, FileRow, JobRow, PartRow
from sparcom_server.errors import LimitExceededError
from sparcom_server.schemas.requests import Limits

NUMBERS = count()


def ann(**limits: int) -> Principal:
    """Return a user with these limits."""
    return Principal("ann", "user", "id", Limits(**limits))


def new_job(owner: str, instructions: int, state: str = "queued", started: int | None = None, *tokens: int) -> JobRow:
    """Return a job, with one part per number of tokens."""
    job_id = f"job{next(NUMBERS)}"
    parts = [
        PartRow(number=number, model="m", archive="a", run=None, state="running", progress={"tokens_done": done})
        for number, done in enumerate(tokens)
    ]
    return JobRow(
        id=job_id, owner=owner, state=state, model="m", options={}, dataset="", analysis=False,
        instructions=instructions, warnings=[], failures=[], created=now(), started=started, revision=1,
        request_sha256="", parts=parts,
    )  # fmt: skip


def add_job(database: Database, *arguments: Any) -> None:
    """Store a job."""
    database.transaction(lambda session: session.add(new_job(*arguments)))


def submit(database: Database, principal: Principal, instructions: int) -> None:
    """Submit a job as the service does: the job is added, then checked."""

    def work(session: Session) -> None:
        session.add(new_job(principal.owner, instructions))
        check_submission(session, principal, instructions)

    database.transaction(work)


def test_queued_instructions_are_limited(database: Database) -> None:
    """Instructions of the owner's unfinished jobs count, up to the limit; other owners and ended jobs do not."""
    for owner, state, instructions in (
        ("ann", "queued", 3), ("ann", "running", 4), ("ann", "complete", 50), ("ben", "queued", 50),
    ):  # fmt: skip
        add_job(database, owner, instructions, state)
    with pytest.raises(LimitExceededError, match=r"at most 10 .* have 7, this job has 4\. Wait") as caught:
        submit(database, ann(queued_instructions=10), 4)
    assert caught.value.retry == 30
    with pytest.raises(LimitExceededError) as caught:
        submit(database, ann(queued_instructions=10), 11)
    assert caught.value.retry is None, "waiting does not help"
    submit(database, ann(queued_instructions=10), 3)
    submit(database, ann(), 10**9)


def test_tokens_of_a_day_are_limited(database: Database) -> None:
    """Tokens of both parts of jobs started within 24 hours count; a retry is due once the oldest is too old."""
    today = now()
    add_job(database, "ann", 1, "complete", today - DAY - 5000, 100)
    add_job(database, "ben", 1, "complete", today, 100)
    add_job(database, "ann", 1, "complete", today - DAY + 60_000, 20, 30)
    add_job(database, "ann", 1, "running", today, 9)
    submit(database, ann(tokens_per_day=60), 1)
    with pytest.raises(LimitExceededError, match=r"at most 59 tokens .* captured 59\.") as caught:
        submit(database, ann(tokens_per_day=59), 1)
    assert 0 < (caught.value.retry or 0) <= 60
    with pytest.raises(LimitExceededError):
        submit(database, ann(tokens_per_day=0), 1)


def test_storage_is_limited(database: Database) -> None:
    """Bytes of the owner's archives and files count."""

    def add(session: Any) -> None:
        for owner in ("ann", "ben"):
            session.add(ArchiveRow(name=f"{owner}~a", owner=owner, bytes=5_000_000_000))
            session.add(FileRow(id=owner, owner=owner, filename="f", bytes=7, instructions=1, sha256="", created=1))

    database.transaction(add)

    def check(limit: int, more: int) -> None:
        database.transaction(lambda session: check_storage(session, ann(storage_bytes=limit), more))

    check(5_000_000_010, 3)
    with pytest.raises(LimitExceededError, match=r"take 5,000,000,007, the new one takes 4\. Delete"):
        check(5_000_000_010, 4)
    submit(database, ann(storage_bytes=5_000_000_008), 1)
    with pytest.raises(LimitExceededError, match=r"take 5,000,000,007\. Delete"):
        submit(database, ann(storage_bytes=5_000_000_007), 1)


def accepts(limits: RequestLimits, principal: Principal) -> bool:
    """Return whether a request is within the limit."""
    try:
        limits.count_request(principal)
    except LimitExceededError:
        return False
    return True


def test_requests_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may send the requests of a minute at once; then its bucket refills evenly, to a minute's at most."""

    async def run() -> None:
        time = [1000.0]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time[0])
        limits, user = RequestLimits(), ann(requests_per_minute=6)

        def allowed() -> int:
            return sum(accepts(limits, user) for _ in range(100))

        assert allowed() == 6
        with pytest.raises(LimitExceededError, match="at most 6 requests per minute") as caught:
            limits.count_request(user)
        assert caught.value.retry == 10
        time[0] += 9.5
        with pytest.raises(LimitExceededError) as caught:
            limits.count_request(user)
        assert caught.value.retry == 1
        time[0] += 0.5
        assert allowed() == 1
        time[0] += 3600
        assert allowed() == 6
        limits.count_request(Principal("ann", "user", "another key", user.limits))
        for _ in range(100):
            limits.count_request(ANONYMOUS)

    asyncio.run(run())


def test_event_streams_are_limited() -> None:
    """Open streams of one key count, and those that ended do not."""
    limits, user = RequestLimits(), ann(event_streams=2)
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(limits.event_stream(user))
        with pytest.raises(LimitExceededError, match="at most 2 open event streams"):
            streams.enter_context(limits.event_stream(user))
        streams.enter_context(limits.event_stream(Principal("ann", "user", "another key", user.limits)))
    with limits.event_stream(user), limits.event_stream(user):
        pass
