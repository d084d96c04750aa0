"""Open the database, bring its tables up to date, and run transactions off the event loop.

SQLite by default; any URL that SQLAlchemy knows works, PostgreSQL is tested. One process serves one database.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sparcom_data.errors import StorageError
from sparcom_server.errors import DatabaseError, DatabaseFullError

T = TypeVar("T")
FILE = "sparcom.db"
THREADS = 4
BUSY_SECONDS = 30

logger = logging.getLogger(__name__)


def database_url(data_dir: Path) -> str:
    """Return the URL of the SQLite database in a data folder."""
    return f"sqlite:///{data_dir.absolute() / FILE}"


def now() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


_RESTORE = "Restore it from a backup, then start the service again"


class Database:
    """Connections to one database with up-to-date tables.

    Raises:
        StorageError: it cannot be opened, or a later release wrote it.
    """

    def __init__(self, url: str) -> None:
        shown = make_url(url).render_as_string(hide_password=True)
        self._file = _SqliteFile.of(url)
        try:
            self._writer = _connect(url, self._file)
            self._reader = self._writer.execution_options(writes=False)
            with self._writer.begin() as connection:
                migrate(connection)
        except (SQLAlchemyError, CommandError, OSError) as error:
            raise StorageError(
                f"the database {shown} cannot be opened: {str(error).splitlines()[0]}. Check the path and its "
                "permissions, and that no later release has written it"
            ) from error
        # Writes wait for each other anyway; on a thread of their own they hold up no read.
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sparcom-db-write")
        self._read_threads = ThreadPoolExecutor(THREADS - 1, thread_name_prefix="sparcom-db-read")

    def transaction(self, work: Callable[[Session], T], *, writes: bool = True) -> T:
        """Run `work` in one transaction: all of its changes are made, or none. Blocks.

        Raises:
            DatabaseError: the database failed.
        """
        try:
            with (
                self._file.kept() if self._file else nullcontext(),
                Session(self._writer if writes else self._reader, expire_on_commit=False) as session,
                session.begin(),
            ):
                return work(session)
        except SQLAlchemyError as error:
            raise _database_error(error) from error

    def require_sound(self) -> None:
        """Read the whole file of an SQLite database. Blocks, for some seconds per GiB.

        Raises:
            StorageError: it is damaged.
        """
        if self._file is None:
            return
        found = self.transaction(
            lambda session: session.execute(text("PRAGMA quick_check(1)")).scalar_one(), writes=False
        )
        if found != "ok":
            raise StorageError(f"the database must be undamaged; {self._file.path} is not: {found}. {_RESTORE}")

    async def write(self, work: Callable[[Session], T]) -> T:
        """Run `transaction` in the thread of writes."""
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, self.transaction, work)

    async def read(self, work: Callable[[Session], T]) -> T:
        """Run a transaction that changes nothing in a thread of reads. It waits for no write."""
        work_only = partial(self.transaction, work, writes=False)
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, work_only)

    def close(self) -> None:
        """Close every connection."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.dispose()


class _SqliteFile:
    """The file of an SQLite database, which must stay at its path.

    SQLite itself would write on into a removed file, and all that it confirms would be gone after a restart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._identity = (0, 0)

    @classmethod
    def of(cls, url: str) -> _SqliteFile | None:
        """Return the file of an SQLite database; None of another one."""
        parsed = make_url(url)
        return cls(Path(parsed.database or FILE)) if parsed.get_backend_name() == "sqlite" else None

    def create(self) -> None:
        """Create the file unless it exists. SQLite's other files copy its mode."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        self._identity = found.st_dev, found.st_ino
        if not found.st_size and any(self.path.parent.glob("archives/*.zarr")):
            logger.warning("%s is new, but archives are here: keys and jobs of an earlier one are gone", self.path)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raise DatabaseError if the file is not at its path, before and after. Takes some microseconds."""
        self._check()
        try:
            yield
        finally:
            self._check()

    def _check(self) -> None:
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise DatabaseError(
                f"the database must stay in place while the service runs; {self.path} was removed or replaced. "
                f"{_RESTORE}"
            )


def _connect(url: str, file: _SqliteFile | None) -> Engine:
    if file is None:
        return create_engine(url, pool_size=THREADS, pool_pre_ping=True)
    file.create()
    engine = create_engine(url, pool_size=THREADS, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _database_error(error: SQLAlchemyError) -> DatabaseError:
    """Return the error for a failed transaction, with a remedy."""
    cause, reason = getattr(error, "orig", None), str(error).splitlines()[0].removesuffix(".")
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without the extension
    if code == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == "53100":  # PostgreSQL: disk_full
        return DatabaseFullError(f"the disk of the database is full: {reason}. Free space, then try again")
    remedy = _RESTORE if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} else "Nothing was changed; try again"
    return DatabaseError(f"the database failed: {reason}. {remedy}")


def _begin_sqlite(connection: Connection) -> None:
    """Lock the database before a writing transaction reads: SQLite cannot let it wait later."""
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Python's module would begin transactions itself
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def migrate(connection: Any) -> None:
    """Bring the tables up to date."""
    config = Config()
    config.set_main_option("script_location", "sparcom_server.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
