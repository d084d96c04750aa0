"""The database fails: clear errors, jobs go on, and after a restart nothing is lost and no job is half-written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from helpers import error_of, problem_of
from sparcom_data.archive import open_archive
from sparcom_data.errors import StorageError
from sparcom_data.testing import write_random_archive
from sparcom_server.database import database as module
from sparcom_server.database.database import Database, database_url
from sparcom_server.database.tables import ArchiveRow, InstructionRow, JobRow, PartRow
from sparcom_server.jobs import runner
from writing_engine import WritingEngine, assert_rows

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
BUSY = 0.2
JSONL = {"Content-Type": "application/jsonl"}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a locked database after `BUSY` seconds, and look for jobs again soon."""
    monkeypatch.setattr(module, "BUSY_SECONDS", BUSY)
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.05)


def file_of(running: Any) -> Path:
    """Return the file of the database."""
    path: Path = running.archives.parent / "sparcom.db"
    return path


def rows(running: Any) -> list[int]:
    """Return the number of jobs, parts, held names and instructions in the database."""
    tables = [row.__tablename__ for row in (JobRow, PartRow, ArchiveRow, InstructionRow)]
    with closing(sqlite3.connect(file_of(running))) as connection:
        return [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]  # noqa: S608


@contextmanager
def locked(running: Any) -> Iterator[None]:
    """Lock the database from a connection of its own, as another process would."""
    with closing(sqlite3.connect(file_of(running), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def at(running: Any, moment: str, act: Callable[[Any], None]) -> Iterator[None]:
    """Call a function at every `begin` or `commit` of a writing transaction."""
    engine = running.service.database._writer

    def writing(connection: Any) -> None:
        if connection.get_execution_options().get("writes", True):
            act(connection)

    event.listen(engine, moment, writing)
    yield
    event.remove(engine, moment, writing)


@contextmanager
def full(running: Any) -> Iterator[None]:
    """Let no transaction enlarge the file: SQLite's own error for a full disk."""
    with at(running, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1")):
        yield
    event.listen(
        running.service.database._writer,
        "begin",
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1073741823"),
    )


@contextmanager
def broken(running: Any) -> Iterator[None]:
    """Fail every commit with an I/O error."""

    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    with at(running, "commit", fail):
        yield


FAULTS = {"locked": (locked, 503), "full": (full, 507), "broken": (broken, 503)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_database_loses_no_job(start: Start, fault: str) -> None:
    """While it fails, one job runs and one waits. Requests that write get a problem detail and leave nothing; reads
    work. Afterwards both jobs become complete, and a restart finds them so."""
    failing, status = FAULTS[fault]
    running = start(WritingEngine(pause=0.05))
    jobs = [running.post(40, archive=name).json()["id"] for name in ("runs", "waits")]
    running.wait(jobs[0], lambda job: job["progress"]["complete"] >= 4)
    before = rows(running)
    with failing(running):
        answers = [running.post(2000, archive="new")]
        if fault != "full":  # small changes may fit into pages that are free
            answers += [
                running.http.delete(f"/v1/extractions/{jobs[1]}"),
                running.http.post("/v1/files", content='{"id": "a", "text": "b"}', headers=JSONL),
            ]
        for answer in answers:
            assert (answer.status_code, problem_of(answer).split("-")[0]) == (status, "database"), answer.text
            assert answer.headers.get("Retry-After") == ("5" if status == 503 else None)
        assert running.job(jobs[1])["state"] == "queued"
        assert running.http.get("/health").status_code == 200
        assert list((running.archives.parent / "files").glob("*")) == []
        assert rows(running) == before
        running.wait_for(lambda: open_archive(running.archives / "runs.zarr").attributes.state == "complete")
        if fault != "full":
            running.wait_for(lambda: "no job runs" in str(running.http.get("/ready").json()["problems"]))
            assert running.job(jobs[1])["state"] == "queued"
    ended = [running.wait(job) for job in jobs]
    assert [(job["state"], job["progress"]["complete"]) for job in ended] == [("complete", 40)] * 2
    running.wait_for(lambda: running.http.get("/ready").status_code == 200)
    assert running.wait(running.post(2, archive="new").json()["id"])["state"] == "complete", "the name stayed free"
    for name in ("runs", "waits"):
        assert assert_rows(open_archive(running.archives / f"{name}.zarr"), "fake") == 40
    running.stop()
    again = start(WritingEngine())
    assert [again.job(job)["state"] for job in jobs] == ["complete", "complete"]


@pytest.mark.parametrize("seed", range(6))
def test_a_commit_that_fails_once_is_made_up_for(start: Start, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whichever change of a job is lost, from its start to its end, the job becomes complete, and runs no row twice."""
    engine = WritingEngine()
    running, failed = start(engine), list[int]()
    real, seen = running.service.jobs._change, 0

    async def change(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == seed + 1:
            failed.append(seen)
            raise module.DatabaseError("the database failed: disk I/O error")
        return await real(*arguments)

    monkeypatch.setattr(running.service.jobs, "_change", change)
    ended = running.wait(running.post(8, archive="m").json()["id"])
    assert (ended["state"], ended["progress"]["complete"], ended["error"]) == ("complete", 8, None)
    assert failed == [seed + 1]
    assert assert_rows(open_archive(running.archives / "m.zarr"), "fake") == 8
    assert sorted(engine.committed) == list(range(8))


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_database_that_is_gone_confirms_nothing(start: Start, fate: str) -> None:
    """SQLite would write on into a removed file. Requests get 503 with the reason, and no new file is made. Once it is
    restored, the next start continues the jobs."""
    running = start(WritingEngine(pause=0.05))
    jobs = [running.post(40, archive=name).json()["id"] for name in ("runs", "waits")]
    running.wait(jobs[0], lambda job: job["progress"]["complete"] >= 4)
    file, aside = file_of(running), running.archives.parent / "aside"
    aside.mkdir()
    for path in file.parent.glob("sparcom.db*"):
        if fate == "replaced":
            shutil.copy(path, aside / f"copy-{path.name}")
        path.rename(aside / path.name)
    for path in aside.glob("copy-*"):
        path.rename(file.with_name(path.name.removeprefix("copy-")))
    answer = running.post(1)
    assert (answer.status_code, problem_of(answer)) == (503, "database")
    assert "was removed or replaced" in error_of(answer)
    for route in ("/health", "/ready"):
        answer = running.http.get(route)
        assert answer.status_code == 503
        assert "was removed or replaced" in answer.text
    assert running.http.get("/v1/archives/runs").status_code == 200
    running.wait_for(lambda: open_archive(running.archives / "runs.zarr").attributes.state == "complete")
    running.stop()
    assert file.exists() == (fate == "replaced")
    for path in [*file.parent.glob("sparcom.db*")]:
        path.unlink()
    for path in aside.glob("sparcom.db*"):
        path.rename(file.with_name(path.name))
    again = start(WritingEngine())
    assert [again.wait(job)["progress"]["complete"] for job in jobs] == [40, 40]


def damage(file: Path) -> None:
    """Overwrite all pages but the first two, which hold the schema."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with file.open("r+b") as opened:
        opened.seek(2 * size)
        opened.write(os.urandom(file.stat().st_size - 2 * size))


def test_a_database_that_is_damaged_while_it_runs(start: Start) -> None:
    """No request gets a 500: each tells that the database failed. The next start refuses the file."""
    running = start(WritingEngine())
    job = running.wait(running.post(40, archive="m").json()["id"])
    damage(file_of(running))
    answers = [running.post(2000), running.http.get("/v1/extractions"), running.http.get("/v1/files")]
    answers += [running.http.get(f"/v1/extractions/{job['id'][::-1]}"), running.http.get("/v1/archives/m")]
    assert {answer.status_code for answer in answers} <= {503, 404, 200, 202}
    failed = [answer for answer in answers if answer.status_code == 503]
    assert failed
    assert all("Restore it from a backup" in error_of(answer) for answer in failed)
    assert assert_rows(open_archive(running.archives / "m.zarr"), "fake") == 40
    running.stop()
    with pytest.raises(StorageError, match=r"malformed|undamaged"):
        start(WritingEngine())


@pytest.mark.parametrize("fault", ["garbage", "locked"])
def test_a_database_that_cannot_be_opened_ends_the_start(tmp_path: Path, fault: str) -> None:
    """The error is one line with the file and a remedy, and the file stays as it is."""
    file = tmp_path / "sparcom.db"
    if fault == "garbage":
        file.write_bytes(b"not a database" * 1000)
    else:
        Database(database_url(tmp_path)).close()
    before = file.read_bytes()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        if fault == "locked":
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"sparcom\.db cannot be opened: .*(not a database|locked).*\. Check"):
            Database(database_url(tmp_path))
    assert file.read_bytes() == before


def test_a_new_database_beside_archives_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A database that was deleted before the start took keys and jobs with it: the log warns."""
    Database(database_url(tmp_path)).close()
    assert caplog.messages == []
    (tmp_path / "sparcom.db").unlink()
    write_random_archive(tmp_path / "archives" / "a.zarr")
    database = Database(database_url(tmp_path))
    assert "sparcom.db is new, but archives are here" in caplog.text
    assert database.transaction(lambda session: session.execute(text("SELECT 1")).scalar_one(), writes=False) == 1
    database.close()
