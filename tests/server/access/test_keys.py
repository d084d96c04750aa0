"""API keys: how they are stored, found, cached and revoked."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sparcom_server.access import keys as keys_module
from sparcom_server.access.keys import KeyStore, create_key, list_keys, revoke_key
from sparcom_server.database.database import Database, database_url
from sparcom_server.errors import KeyNotFoundError
from sparcom_server.schemas.reports import NewKeyReport
from sparcom_server.schemas.requests import KeyRequest, Limits, Role

T = TypeVar("T")


def make(database: Database, name: str = "ann", role: Role = "user", **limits: int) -> NewKeyReport:
    """Create a key."""
    request = KeyRequest(name=name, role=role, limits=Limits(**limits))
    return database.transaction(lambda session: create_key(session, request))


def run(database: Database, work: Callable[[KeyStore], Awaitable[T]], **defaults: int) -> T:
    """Run a coroutine with a store of the keys."""

    async def running() -> T:
        return await work(KeyStore(database, Limits(**defaults)))

    return asyncio.run(running())


def test_only_a_hash_is_stored(tmp_path: Path) -> None:
    """A key is sparcom_ID_SECRET with 256 random bits; neither database nor report holds the secret."""
    database = Database(database_url(tmp_path))
    new = make(database)
    prefix, key_id, secret = new.key.split("_", 2)
    assert (prefix, key_id, len(secret)) == ("sparcom", new.id, 43)
    assert make(database).key != new.key
    page = database.transaction(lambda session: list_keys(session, 10))
    assert secret not in page.model_dump_json()
    database.close()
    files = list(tmp_path.iterdir())
    assert files
    assert not any(secret.encode() in file.read_bytes() for file in files)
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_a_key_is_found_with_its_limits(database: Database) -> None:
    """The principal has the key's name, role, id, its own limits, and the server's for the others."""
    new = make(database, role="admin", tokens_per_day=7)

    async def work(store: KeyStore) -> Any:
        await store.read()
        return store.find(new.key)

    found = run(database, work, tokens_per_day=1, event_streams=3)
    assert (found.owner, found.role, found.key_id) == ("ann", "admin", new.id)
    assert found.limits == Limits(tokens_per_day=7, event_streams=3)


def test_wrong_keys_are_not_found(database: Database) -> None:
    """Another secret, another id, another form or a revoked key finds nobody."""
    new, other, gone = make(database), make(database), make(database)
    database.transaction(lambda session: revoke_key(session, gone.id))
    secret = new.key.split("_", 2)[2]
    wrong = [
        f"sparcom_{other.id}_{secret}", f"sparcom_{'0' * 16}_{secret}", new.key[:-1], new.key + "A", new.key + "\n",
        new.key.upper(), secret, new.id, "", "sparcom__", "ü" * 68, gone.key,
    ]  # fmt: skip

    async def work(store: KeyStore) -> Any:
        await store.read()
        return [store.find(key) for key in wrong], store.find(new.key)

    found, right = run(database, work)
    assert found == [None] * len(wrong)
    assert right is not None


def test_unknown_ids_are_compared_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key costs one comparison in constant time, whether its id exists or not."""
    new, calls = make(database), []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: calls.append((len(a), len(b))) or a == b)
    keys = [new.key, new.key[:-2] + "AA", f"sparcom_{'0' * 16}_{'A' * 43}", "nonsense"]

    async def work(store: KeyStore) -> None:
        await store.read()
        for key in keys:
            store.find(key)

    run(database, work)
    assert calls == [(64, 64)] * len(keys)


def test_keys_are_read_once_a_second(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests share one read of the table; a change by another process counts once it is too old."""
    new, reads = make(database), []
    read = Database.read

    async def counted(self: Database, work: Any) -> Any:
        reads.append(1)
        return await read(self, work)

    monkeypatch.setattr(Database, "read", counted)

    async def work(store: KeyStore) -> None:
        await asyncio.gather(*(store.read() for _ in range(20)))
        database.transaction(lambda session: revoke_key(session, new.id))
        await store.read()
        assert len(reads) == 1
        assert store.find(new.key)
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock() + keys_module.CACHE_SECONDS)
        await store.read()
        assert (len(reads), store.find(new.key), store.required) == (2, None, True)
        store.expire()
        await store.read()
        assert len(reads) == 3

    run(database, work)


def test_no_key_is_required_until_one_exists(database: Database) -> None:
    """`required` is true before the first read, false without keys, and true for good once there was one."""

    async def work(store: KeyStore) -> list[bool]:
        seen = [store.required]
        for change in (lambda: None, lambda: make(database), lambda: revoke_all(database)):
            change()
            store.expire()
            await store.read()
            seen.append(store.required)
        return seen

    assert run(database, work) == [True, False, True, True]


def revoke_all(database: Database) -> None:
    """Revoke every key."""
    for key in database.transaction(lambda session: list_keys(session, 100)).data:
        database.transaction(lambda session, key_id=key.id: revoke_key(session, key_id))


def test_the_last_use_is_written_once_a_minute(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`last_used` follows the first use, and the next one a minute later."""
    new, time = make(database), [1_000_000_000_000]
    monkeypatch.setattr(keys_module, "now", lambda: time[0])

    async def work(store: KeyStore) -> list[str | None]:
        seen = []
        for step in (0, 59_999, 1):
            time[0] += step
            await store.read()
            store.find(new.key)
            await asyncio.gather(*store._writes)
            seen.append(database.transaction(lambda session: list_keys(session, 1)).data[0].last_used)
        return seen

    assert run(database, work) == ["2001-09-09T01:46:40.000+00:00"] * 2 + ["2001-09-09T01:47:40.000+00:00"]


def test_keys_are_listed_in_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has the newest first, also if they are equally old, and no key twice."""
    monkeypatch.setattr(keys_module, "now", lambda: 5)
    made = {make(database).id for _ in range(5)}
    seen: list[str] = []
    more, after = True, None
    while more:
        page = database.transaction(lambda session, after=after: list_keys(session, 2, after))
        seen += [key.id for key in page.data]
        more, after = page.has_more, page.last_id
    assert (len(seen), set(seen)) == (5, made)
    with pytest.raises(KeyNotFoundError):
        database.transaction(lambda session: list_keys(session, 2, "0" * 16))


def test_a_key_is_revoked_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time of revocation stays; an unknown id is an error."""
    new = make(database)
    first = database.transaction(lambda session: revoke_key(session, new.id)).revoked
    monkeypatch.setattr(keys_module, "now", lambda: 5)
    assert first
    assert database.transaction(lambda session: revoke_key(session, new.id)).revoked == first
    with pytest.raises(KeyNotFoundError, match="no key has the id 'nope'"):
        database.transaction(lambda session: revoke_key(session, "nope"))
