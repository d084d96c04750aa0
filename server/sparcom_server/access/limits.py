"""Limits per key. The first two functions run in the transaction that adds what they check."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sparcom_server.access.principal import Principal
from sparcom_server.database.database import now
from sparcom_server.database.tables import ArchiveRow, FileRow, JobRow, PartRow
from sparcom_server.errors import LimitExceededError
from sparcom_server.schemas.reports import UNFINISHED

RETRY_SECONDS = 30  # until a job may have ended
DAY = 24 * 3600 * 1000  # ms


def check_submission(session: Session, principal: Principal, instructions: int) -> None:
    """Refuse a job of `instructions` instructions, just added, that exceeds a limit of the key's owner.

    Raises:
        LimitExceededError: of queued instructions, tokens per day, or storage.
    """
    limits = principal.limits
    if limits.queued_instructions is not None:
        unfinished = select(func.sum(JobRow.instructions)).where(
            JobRow.owner == principal.owner, JobRow.state.in_(UNFINISHED)
        )
        queued = (session.scalar(unfinished) or 0) - instructions
        if queued + instructions > limits.queued_instructions:
            raise LimitExceededError(
                f"unfinished jobs of a key may have at most {limits.queued_instructions:,} instructions; those of "
                f"{principal.owner!r} have {queued:,}, this job has {instructions:,}. Wait until jobs have ended, or "
                "send fewer instructions",
                RETRY_SECONDS if instructions <= limits.queued_instructions else None,
            )
    if limits.tokens_per_day is not None:
        _check_tokens(session, principal, limits.tokens_per_day)
    check_storage(session, principal)


def _check_tokens(session: Session, principal: Principal, limit: int) -> None:
    since = now() - DAY
    query = select(JobRow.started, PartRow.progress).join(JobRow.parts)
    rows = session.execute(query.where(JobRow.owner == principal.owner, JobRow.started > since)).all()
    tokens = sum(progress.get("tokens_done", 0) for _, progress in rows)
    if tokens >= limit:
        oldest = min((started for started, progress in rows if progress.get("tokens_done")), default=now())
        raise LimitExceededError(
            f"jobs of a key may capture at most {limit:,} tokens within 24 hours; those of {principal.owner!r} "
            f"captured {tokens:,}. Wait, or ask the operator for a higher limit",
            math.ceil((oldest - since) / 1000),
        )


def check_storage(session: Session, principal: Principal, more: int = 0) -> None:
    """Refuse `more` bytes beside the archives and files of the key's owner. more: 0 if the size is unknown yet.

    Raises:
        LimitExceededError: there would be more than the limit, or there is no byte left.
    """
    limit = principal.limits.storage_bytes
    if limit is None:
        return
    sizes = [
        session.scalar(select(func.sum(table.bytes)).where(table.owner == principal.owner)) or 0
        for table in (ArchiveRow, FileRow)
    ]
    if sum(sizes) + max(more, 1) > limit:
        raise LimitExceededError(
            f"archives and files of a key may take at most {limit:,} bytes; those of {principal.owner!r} take "
            f"{sum(sizes):,}" + (f", the new one takes {more:,}" if more else "") + ". Delete some of them, or ask the "
            "operator for a higher limit"
        )


class RequestLimits:
    """Requests per minute and open event streams of each key, in memory. Clients without a key have no limit."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, at which time of the event loop
        self._streams = Counter[str]()

    def count_request(self, principal: Principal) -> None:
        """Take one request out of the key's bucket, which refills evenly and holds those of one minute.

        Raises:
            LimitExceededError: it is empty.
        """
        per_minute = principal.limits.requests_per_minute
        if per_minute is None:
            return
        time = asyncio.get_running_loop().time()
        left, since = self._buckets.get(principal.key_id, (per_minute, time))
        left = min(per_minute, left + (time - since) * per_minute / 60)
        if left < 1:
            retry = math.ceil((1 - left) * 60 / per_minute)
            raise LimitExceededError(
                f"a key may send at most {per_minute:,} requests per minute; this one sent more. Wait {retry} s",
                retry,
            )
        self._buckets[principal.key_id] = (left - 1, time)

    @contextmanager
    def event_stream(self, principal: Principal) -> Iterator[None]:
        """Count an open event stream of the key.

        Raises:
            LimitExceededError: it has too many.
        """
        most = principal.limits.event_streams
        if most is not None and self._streams[principal.key_id] >= most:
            raise LimitExceededError(
                f"a key may have at most {most} open event streams; this one has {self._streams[principal.key_id]}. "
                "Close some of them, or GET the job itself instead"
            )
        self._streams[principal.key_id] += 1
        try:
            yield
        finally:
            self._streams[principal.key_id] -= 1
