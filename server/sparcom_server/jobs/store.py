"""Jobs in the database. Every change of a job is one transaction.

    queued ─▶ loading ─▶ running ─▶ complete | failed
       ▲__________│_________│           the engine died, the disk is full, or the service stopped
    queued | loading | running ─▶ cancelling ─▶ cancelled

The table follows the archives: which instructions are complete is read from the archive after a crash.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from sparcom_data.errors import JobNotFoundError, JobStateError
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_server.access.principal import Principal
from sparcom_server.database.database import Database, now
from sparcom_server.database.tables import ArchiveRow, InstructionRow, JobRow
from sparcom_server.errors import RETRY_SECONDS, QueueFullError
from sparcom_server.jobs.batch import Batch, read_batch
from sparcom_server.jobs.filters import JobFilter
from sparcom_server.jobs.submission import Submission, hold_names, insert_instructions, new_job, replayed
from sparcom_server.schemas.reports import UNFINISHED, JobError, JobState, PartState

MAX_CACHED = 10_000  # jobs
ACTIVE: tuple[JobState, ...] = ("loading", "running", "cancelling")


def iso(time: int) -> str:
    """Return a time of the database in ISO 8601."""
    return datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")


class JobStore:
    """The jobs of one service. The only writer of the tables of jobs, so that it may keep jobs in memory."""

    def __init__(self, database: Database, max_queued: int) -> None:
        self._database = database
        self._max_queued = max_queued
        self._latest: OrderedDict[str, JobRow] = OrderedDict()
        self._changed: dict[str, asyncio.Event] = {}
        self._positions: dict[str, int] = {}
        self._positions_at = -1  # value of _state_changes at which they were read
        self._positions_lock = asyncio.Lock()
        self._state_changes = 0
        self.wake = asyncio.Event()  # set when there may be work
        self.closed = False

    # Clients

    async def submit(
        self,
        owner: str,
        submission: Submission,
        instructions: Iterable[Instruction],
        check: Callable[[Session, int], None] = lambda _, __: None,
    ) -> tuple[JobRow, bool]:
        """Store a job and its instructions; return it, and whether it is new.

        An earlier job with the same idempotency key and the same request is returned instead. check: raises if the
        owner may not queue so many instructions.

        Raises:
            ArchiveExistsError: a job holds an archive name, or its archive exists.
            IdempotencyError: the idempotency key was used for another request.
            QueueFullError: too many jobs wait.
        """

        def work(session: Session) -> tuple[JobRow, int | None]:
            if earlier := replayed(session, owner, submission):
                return earlier, None
            ahead = self._require_room(session)
            job = new_job(owner, submission)
            session.add(job)
            session.flush()
            hold_names(session, job)
            job.instructions = insert_instructions(session, job.id, instructions)
            for part in job.parts:
                part.progress = asdict(Progress(instructions=job.instructions))
            check(session, job.instructions)
            return job, ahead

        job, ahead = await self._database.write(work)
        known = self._positions_at == self._state_changes
        self._publish(job)
        if known and ahead is not None:  # those of the others stay
            self._positions[job.id], self._positions_at = ahead, self._state_changes
        self.wake.set()
        return job, ahead is not None

    async def get(self, job_id: str, principal: Principal) -> JobRow:
        """Return a job that the client may see.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        job = self._latest.get(job_id) or await self._database.read(lambda session: session.get(JobRow, job_id))
        if job is None or not principal.may_see(job.owner):
            raise JobNotFoundError(f"no extraction has the id {job_id[:64]!r}. GET /v1/extractions lists them")
        return job

    async def watch(self, job_id: str, principal: Principal, seconds: float) -> JobRow:
        """Return the job after its next change, or as it is after `seconds` or after `close`."""
        if not self.closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.setdefault(job_id, asyncio.Event()).wait(), seconds)
        return await self.get(job_id, principal)

    async def list_jobs(
        self, principal: Principal, wanted: JobFilter, limit: int, after: str | None
    ) -> tuple[list[JobRow], bool]:
        """Return jobs, newest first, and whether there are more. after: id of the last job of the previous part.

        Raises:
            JobNotFoundError: the client sees no job with the id `after`.
        """
        last = None if after is None else await self.get(after, principal)

        def work(session: Session) -> list[JobRow]:
            query = wanted.apply(select(JobRow)).order_by(JobRow.created.desc(), JobRow.id.desc())
            if not principal.is_admin:
                query = query.where(JobRow.owner == principal.owner)
            if last is not None:
                older = and_(JobRow.created == last.created, JobRow.id < last.id)
                query = query.where(or_(JobRow.created < last.created, older))
            return list(session.scalars(query.limit(limit + 1)))

        found = await self._database.read(work)
        return found[:limit], len(found) > limit

    async def positions(self) -> dict[str, int]:
        """Return the number of jobs that run before each queued job. Callers share a read that began after the last
        change of a state that they can know of."""
        known = self._state_changes
        async with self._positions_lock:
            if self._positions_at < known:
                began = self._state_changes
                self._positions, self._positions_at = await self._read_positions(), began
            return self._positions

    async def _read_positions(self) -> dict[str, int]:
        def work(session: Session) -> dict[str, int]:
            active = session.scalar(select(func.count()).where(JobRow.state.in_(ACTIVE))) or 0
            queued = session.scalars(select(JobRow.id).where(JobRow.state == "queued").order_by(*_QUEUE_ORDER))
            return {job_id: position for position, job_id in enumerate(queued, start=active)}

        return await self._database.read(work)

    async def request_cancel(self, job_id: str, principal: Principal) -> JobRow:
        """Mark a job as cancelling. The runner ends it.

        Raises:
            JobNotFoundError: there is no such job.
            JobStateError: it has ended already.
        """
        await self.get(job_id, principal)

        def work(_: Session, job: JobRow) -> None:
            if job.state not in UNFINISHED:
                since = iso(job.finished or job.created)
                raise JobStateError(
                    f"only a queued or running extraction can be cancelled; {job_id} is {job.state} since {since}"
                )
            job.state, job.reason = "cancelling", "a client cancelled it"

        job = await self._change(job_id, work)
        self.wake.set()
        return job

    def close(self) -> None:
        """Wake everyone who watches a job: the service stops."""
        self.closed = True
        for changed in self._changed.values():
            changed.set()

    # The runner

    async def recover(self) -> None:
        """Queue again what ran when the service ended."""
        interrupted = await self._database.read(
            lambda session: list(session.scalars(select(JobRow.id).where(JobRow.state.in_(("loading", "running")))))
        )
        for job_id in interrupted:
            await self.requeue(job_id, "the service was restarted; the job continues")

    async def unfinished(self) -> list[JobRow]:
        """Return the jobs that have not ended, in the order of the queue."""
        query = select(JobRow).where(JobRow.state.in_(UNFINISHED)).order_by(*_QUEUE_ORDER)
        return await self._database.read(lambda session: list(session.scalars(query)))

    async def count_states(self) -> dict[str, int]:
        """Return the number of jobs by state."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        return await self._database.read(lambda session: dict(session.execute(query).all()))

    async def batch(self, job_id: str) -> Batch:
        """Return the instructions of a job."""
        return await asyncio.to_thread(read_batch, self._database, job_id)

    async def enter(self, job_id: str, state: JobState, reason: str | None = None) -> JobRow:
        """Move a job to loading or running, unless it was cancelled."""

        def work(_: Session, job: JobRow) -> None:
            if job.state in {"queued", "loading", "running"}:
                job.state, job.reason, job.passed_over = state, reason, None
                job.started = job.started or now()

        return await self._change(job_id, work)

    async def pass_over(self, job_id: str) -> None:
        """Note that a later job runs first."""

        def work(_: Session, job: JobRow) -> None:
            job.passed_over = job.passed_over or now()

        await self._change(job_id, work)

    async def requeue(self, job_id: str, reason: str) -> JobRow:
        """Let a job wait again, unless it was cancelled."""

        def work(_: Session, job: JobRow) -> None:
            if job.state in {"loading", "running"}:
                job.state, job.reason = "queued", reason

        return await self._change(job_id, work)

    async def archive_created(self, job_id: str, number: int, prompts_sha256: str, warnings: Iterable[str]) -> JobRow:
        """Note that the archive of a part exists."""

        def work(_: Session, job: JobRow) -> None:
            part = job.parts[number]
            part.state = "running"
            job.prompts_sha256 = job.prompts_sha256 or prompts_sha256
            job.warnings = list(dict.fromkeys([*job.warnings, *warnings]))

        return await self._change(job_id, work)

    async def record(self, job_id: str, number: int, progress: Progress, state: PartState = "running") -> JobRow:
        """Store the progress of a part."""

        def work(_: Session, job: JobRow) -> None:
            job.parts[number].progress, job.parts[number].state = asdict(progress), state

        return await self._change(job_id, work)

    async def engine_died(self, job_id: str, in_flight: Collection[int], alone: Collection[int]) -> None:
        """Note which instructions ran when the engine died. Those that ran alone get a death, the others become
        suspects, which run alone from now on."""

        def work(session: Session, _: JobRow) -> None:
            for number in in_flight:
                row = session.get(InstructionRow, (job_id, number))
                if row is not None:
                    row.suspect, row.deaths = 1, row.deaths + (number in alone)

        await self._change(job_id, work)

    async def finish(
        self,
        job_id: str,
        state: JobState,
        error: JobError | None = None,
        *,
        failures: Iterable[str] = (),
        sizes: Iterable[int | None],
    ) -> JobRow:
        """End a job: release its archive names, and forget its instructions, which the archive holds now.

        failures: JSON of the first failed instructions. sizes: bytes on disk of each archive; None if there is none.
        """

        def work(session: Session, job: JobRow) -> None:
            if job.state not in UNFINISHED:  # ended by another request
                return
            job.state, job.finished = state, now()
            job.reason = job.reason if state == "cancelled" else None
            job.failures = list(failures)
            if error is not None:
                job.error_type, job.error_message = error.type, error.message
            for part, size in zip(job.parts, sizes, strict=True):
                if part.state == "pending" and state == "cancelled":
                    part.progress = part.progress | {"cancelled": job.instructions}
                if part.state in {"pending", "running"}:
                    part.state = "cancelled" if state == "cancelled" else "failed"
                    part.progress = part.progress | {"seconds_left": None}
                row = session.get(ArchiveRow, part.archive)
                if row is None:
                    continue
                row.job_id, row.bytes = None, size or 0
                if size is None:
                    session.delete(row)
            session.execute(delete(InstructionRow).where(InstructionRow.job_id == job_id))

        return await self._change(job_id, work)

    async def forget(self, job_id: str) -> None:
        """Delete the record of a job that has ended."""

        def work(session: Session) -> None:
            if job := session.get(JobRow, job_id):
                session.delete(job)

        await self._database.write(work)
        self._latest.pop(job_id, None)

    async def expired(self) -> list[JobRow]:
        """Return the ended jobs that have expired."""
        query = select(JobRow).where(JobRow.expires <= now(), JobRow.state.not_in(UNFINISHED))
        return await self._database.read(lambda session: list(session.scalars(query)))

    async def _change(self, job_id: str, work: Callable[[Session, JobRow], None]) -> JobRow:
        def change(session: Session) -> JobRow:
            job = session.get(JobRow, job_id)
            if job is None:
                raise JobNotFoundError(f"no extraction has the id {job_id!r}")
            work(session, job)
            job.revision += 1
            return job

        job = await self._database.write(change)
        self._publish(job)
        return job

    def _publish(self, job: JobRow) -> None:
        known = self._latest.get(job.id)
        if known is None or known.state != job.state:
            self._state_changes += 1
        if known is None or known.revision < job.revision:
            self._latest[job.id] = job
        self._latest.move_to_end(job.id)
        while len(self._latest) > MAX_CACHED:
            self._latest.popitem(last=False)
        if changed := self._changed.pop(job.id, None):
            changed.set()

    def _require_room(self, session: Session) -> int:
        """Return the number of unfinished jobs. Raises QueueFullError if no more may wait."""
        query = select(JobRow.state, func.count()).where(JobRow.state.in_(UNFINISHED)).group_by(JobRow.state)
        counts: dict[str, int] = dict(session.execute(query).all())
        waiting, unfinished = counts.get("queued", 0), sum(counts.values())
        if waiting >= self._max_queued + (unfinished == waiting):
            raise QueueFullError(
                f"the job queue is full ({self._max_queued} waiting). Retry after {RETRY_SECONDS[QueueFullError]} s, "
                "or have the operator raise max_queued_jobs"
            )
        return unfinished


_QUEUE_ORDER = (JobRow.created, JobRow.id)
