"""Open the database, bring its tables up to date, and run transactions off the event loop.

SQLite by default; any URL that SQLAlchemy knows works, PostgreSQL is tested. One process serves one database.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sparcom_data.errors import StorageError

T = TypeVar("T")
FILE = "sparcom.db"
THREADS = 4
BUSY_SECONDS = 30


def database_url(data_dir: Path) -> str:
    """Return the URL of the SQLite database in a data folder."""
    return f"sqlite:///{data_dir.absolute() / FILE}"


def now() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class DatabaseError(StorageError):
    """The database failed; nothing was changed."""


class Database:
    """Connections to one database with up-to-date tables.

    Raises:
        StorageError: it cannot be opened, or a later release wrote it.
    """

    def __init__(self, url: str) -> None:
        shown = make_url(url).render_as_string(hide_password=True)
        try:
            self._writer = _connect(url)
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
            with Session(self._writer if writes else self._reader, expire_on_commit=False) as session, session.begin():
                return work(session)
        except SQLAlchemyError as error:
            raise DatabaseError(f"the database failed: {str(error).splitlines()[0]}") from error

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


def _connect(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_size=THREADS, pool_pre_ping=True)
    file = Path(make_url(url).database or FILE)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite's other files copy its mode
    engine = create_engine(url, pool_size=THREADS, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


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
