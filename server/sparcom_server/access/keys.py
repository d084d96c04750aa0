"""API keys: create, list and revoke them, and find the key of a request.

A key is sparcom_ID_SECRET. The database keeps the SHA-256 of the secret: it has 256 random bits, so nothing slower is
needed. The functions run in a transaction, see `Database`. No log and no report holds a secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from datetime import UTC, datetime
from typing import cast

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from sparcom_data.errors import StorageError
from sparcom_server.access.principal import Principal
from sparcom_server.database.database import Database, now
from sparcom_server.database.tables import KeyRow
from sparcom_server.errors import KeyNotFoundError
from sparcom_server.schemas.reports import KeyPage, KeyReport, NewKeyReport
from sparcom_server.schemas.requests import KeyRequest, Limits, Role

logger = logging.getLogger(__name__)

CACHE_SECONDS = 1.0  # a key that another process revokes is refused after this
USED_SECONDS = 60  # between two changes of `last_used`
SECRET_BYTES = 32
_KEY = re.compile(r"sparcom_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NO_HASH = "0" * 64


def create_key(session: Session, request: KeyRequest) -> NewKeyReport:
    """Store a new key. The report alone holds the secret."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    row = KeyRow(
        id=secrets.token_hex(8),
        name=request.name,
        role=request.role,
        hash=_hash(secret),
        limits=request.limits.model_dump(exclude_none=True),
        created=now(),
    )
    session.add(row)
    return NewKeyReport(**dict(_report(row)), key=f"sparcom_{row.id}_{secret}")


def list_keys(session: Session, limit: int, after: str | None = None) -> KeyPage:
    """Return keys, newest first, also revoked ones. after: id of the last key of the page before.

    Raises:
        KeyNotFoundError: no key has the id `after`.
    """
    query = select(KeyRow).order_by(KeyRow.created.desc(), KeyRow.id.desc()).limit(limit + 1)
    if after is not None:
        last = _get(session, after)
        query = query.where(
            (KeyRow.created < last.created) | ((KeyRow.created == last.created) & (KeyRow.id < last.id))
        )
    rows = session.scalars(query).all()
    data = [_report(row) for row in rows[:limit]]
    return KeyPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


def revoke_key(session: Session, key_id: str) -> KeyReport:
    """Refuse a key from now on. A revoked key stays in the list, and cannot be used again.

    Raises:
        KeyNotFoundError: no key has this id.
    """
    row = _get(session, key_id)
    row.revoked = row.revoked or now()
    return _report(row)


def has_keys(session: Session, *, revoked: bool = True) -> bool:
    """Return whether there is a key. revoked: count revoked ones too."""
    query = select(KeyRow.id) if revoked else select(KeyRow.id).where(KeyRow.revoked.is_(None))
    return bool(session.scalar(select(exists(query))))


class KeyStore:
    """The keys of a database, read at most once per `CACHE_SECONDS`. defaults: limits of keys without their own."""

    def __init__(self, database: Database, defaults: Limits) -> None:
        self._database = database
        self._defaults = defaults
        self._reading = asyncio.Lock()
        self._expires = 0.0  # time of the event loop
        self._valid: dict[str, KeyRow] = {}
        self._used: dict[str, int] = {}  # when `last_used` was written, in milliseconds
        self._writes: set[asyncio.Task[None]] = set()
        self.required = True

    async def read(self) -> None:
        """Read the keys again if they are too old. Sets `required`: whether there is or ever was a key."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now < self._expires:
                return
            rows = await self._database.read(lambda session: session.scalars(select(KeyRow)).all())
            self._valid = {row.id: row for row in rows if row.revoked is None}
            self.required = bool(rows)
            self._expires = now + CACHE_SECONDS

    def find(self, key: str) -> Principal | None:
        """Return the client with this key, or None. Takes equally long for an unknown id and for a wrong secret."""
        match = _KEY.fullmatch(key)
        row = self._valid.get(match[1]) if match else None
        is_right = hmac.compare_digest(_hash(match[2] if match else ""), row.hash if row else _NO_HASH)
        if row is None or not is_right:
            return None
        self._note_use(row)
        limits = self._defaults.model_copy(update=row.limits)
        return Principal(row.name, cast(Role, row.role), row.id, limits)

    def has(self, key_id: str) -> bool:
        """Return whether a key was valid when the keys were read."""
        return key_id in self._valid

    def expire(self) -> None:
        """Read the keys again at the next request: this process changed them."""
        self._expires = 0.0

    def _note_use(self, row: KeyRow) -> None:
        time = now()
        if time - max(row.last_used or 0, self._used.get(row.id, 0)) >= USED_SECONDS * 1000:
            self._used[row.id] = time
            task = asyncio.create_task(self._write_use(row.id, time))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write_use(self, key_id: str, time: int) -> None:
        statement = update(KeyRow).where(KeyRow.id == key_id).values(last_used=time)
        try:
            await self._database.write(lambda session: session.execute(statement))
        except StorageError as error:  # requests work on
            logger.warning("last_used of a key could not be written: %s", error)


def _get(session: Session, key_id: str) -> KeyRow:
    row = session.get(KeyRow, key_id)
    if row is None:
        raise KeyNotFoundError(f"no key has the id {key_id[:64]!r}; `sparcom keys list` lists them")
    return row


def _report(row: KeyRow) -> KeyReport:
    times = {
        name: time and datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")
        for name, time in (("created", row.created), ("revoked", row.revoked), ("last_used", row.last_used))
    }
    return KeyReport.model_validate({"id": row.id, "name": row.name, "role": row.role, "limits": row.limits, **times})


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
