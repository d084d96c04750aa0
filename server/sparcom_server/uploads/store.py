"""Uploaded files: DATA/files/ID.jsonl, and a row of the table `files` for each.

    receive ─▶ ID.jsonl.partial ─▶ checked ─▶ synced and renamed ─▶ row
    delete, expire: first the row, then the file

A crash can leave a partial file, or a file without row: `sweep` removes both.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from sparcom_data.instructions import Instruction
from sparcom_data.storage import FILE_MODE, make_folder, storage_error, sync_path
from sparcom_server.access.principal import Principal
from sparcom_server.database.database import Database, now
from sparcom_server.database.tables import FileRow
from sparcom_server.errors import BodyTooLargeError, UploadNotFoundError
from sparcom_server.memory import Turns
from sparcom_server.schemas.requests import UploadFields
from sparcom_server.uploads.check import check_file, read_lines

logger = logging.getLogger(__name__)

FOLDER = "files"  # in the data folder
SUFFIX, PARTIAL_SUFFIX = ".jsonl", ".jsonl.partial"


class UploadStore:
    """The uploaded files of one service.

    Args:
        checks: limits how many files are checked at once.
        max_bytes: largest file. max_instructions: per file.
    """

    def __init__(
        self, database: Database, data_dir: Path, checks: Turns, *, max_bytes: int, max_instructions: int
    ) -> None:
        self._database, self._checks = database, checks
        self._folder = (data_dir / FOLDER).absolute()
        self._max_bytes, self._max_instructions = max_bytes, max_instructions

    async def receive(
        self,
        content: AsyncIterable[bytes],
        owner: str,
        fields: Callable[[], UploadFields],
        check: Callable[[Session, int], None] = lambda _, __: None,
    ) -> FileRow:
        """Store a file while it arrives; a refused one leaves nothing.

        Args:
            content: the bytes of the file. fields: called once they have arrived.
            check: raises if the owner may not store so many bytes.

        Raises:
            BodyTooLargeError: it is larger than allowed.
            InvalidInputError: it breaks rules; holds the first 100 problems and their total number.
            StorageError: writing failed.
        """
        file_id = f"file-{secrets.token_hex(12)}"
        partial, path = self._folder / f"{file_id}{PARTIAL_SUFFIX}", self._path(file_id)
        try:
            size, sha256 = await self._write(partial, content)
            given = fields()
            async with self._checks.take(size):
                count = await asyncio.to_thread(check_file, partial, self._max_instructions)
            await asyncio.to_thread(_keep, partial, path)
            created = now()
            row = FileRow(
                id=file_id,
                owner=owner,
                filename=given.filename,
                bytes=size,
                instructions=count,
                sha256=sha256,
                created=created,
                expires=None if given.seconds is None else created + given.seconds * 1000,
            )

            def insert(session: Session) -> None:
                check(session, size)
                session.add(row)

            await self._database.write(insert)
        except BaseException as error:
            _remove(partial, path)
            if isinstance(error, OSError):
                raise storage_error(path, error) from error
            raise
        return row

    async def _write(self, path: Path, content: AsyncIterable[bytes]) -> tuple[int, str]:
        """Write a partial file; return its size and its SHA-256."""
        size, digest = 0, hashlib.sha256()
        with await asyncio.to_thread(self._create, path) as file:

            def append(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            async for data in content:
                size += len(data)
                if size > self._max_bytes:
                    raise BodyTooLargeError(
                        f"a file may have at most {self._max_bytes:,} bytes; this one has more. Split it, or have the "
                        "operator raise max_file_bytes"
                    )
                await asyncio.to_thread(append, data)
        return size, digest.hexdigest()

    def _create(self, path: Path) -> BinaryIO:
        make_folder(self._folder)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "wb")

    async def get(self, file_id: str, principal: Principal) -> FileRow:
        """Return a file that the client may see.

        Raises:
            UploadNotFoundError: there is none with this id.
        """
        return await self._database.read(lambda session: _get(session, file_id, principal))

    async def list_files(self, principal: Principal, limit: int, after: str | None) -> tuple[list[FileRow], bool]:
        """Return files, newest first, and whether there are more. after: id of the last file of the previous part.

        Raises:
            UploadNotFoundError: the client sees no file with the id `after`.
        """

        def work(session: Session) -> list[FileRow]:
            valid = or_(FileRow.expires.is_(None), FileRow.expires > now())
            query = select(FileRow).where(valid).order_by(FileRow.created.desc(), FileRow.id.desc())
            if not principal.is_admin:
                query = query.where(FileRow.owner == principal.owner)
            if after is not None:
                last = _get(session, after, principal)
                older = and_(FileRow.created == last.created, FileRow.id < last.id)
                query = query.where(or_(FileRow.created < last.created, older))
            return list(session.scalars(query.limit(limit + 1)))

        found = await self._database.read(work)
        return found[:limit], len(found) > limit

    async def open(self, file_id: str, principal: Principal) -> int:
        """Return a descriptor of a file's contents, which the caller closes; errors as in `get`."""
        await self.get(file_id, principal)
        return await asyncio.to_thread(self._open, file_id)

    def read(self, file_id: str, principal: Principal) -> Iterator[Instruction]:
        """Yield the instructions of a file one by one. Blocks; errors as in `get`, once the first is asked for."""
        self._database.transaction(lambda session: _get(session, file_id, principal), writes=False)
        with os.fdopen(self._open(file_id), "rb") as file:
            for _, value in read_lines(file, self._max_instructions):
                yield Instruction.model_validate(value)

    def _open(self, file_id: str) -> int:
        try:
            return os.open(self._path(file_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _no_file(file_id) from None

    def _path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}{SUFFIX}"

    async def delete(self, file_id: str, principal: Principal) -> None:
        """Delete a file; errors as in `get`. A job that was submitted with it has its own copy."""

        def work(session: Session) -> None:
            session.delete(_get(session, file_id, principal))

        await self._database.write(work)
        await asyncio.to_thread(_remove, self._path(file_id))

    async def expire(self) -> None:
        """Delete the files that have expired."""

        def work(session: Session) -> list[str]:
            expired = FileRow.expires <= now()
            ids = list(session.scalars(select(FileRow.id).where(expired)))
            session.execute(delete(FileRow).where(expired))
            return ids

        for file_id in await self._database.write(work):
            await asyncio.to_thread(_remove, self._path(file_id))
            logger.info("the uploaded file %s has expired and was deleted", file_id)

    def sweep(self) -> None:
        """Remove what a crash left: partial files, files without row, rows without file. Call it before any upload.

        Blocks.
        """
        found = {path.name: path for path in self._folder.glob("file-*")}

        def work(session: Session) -> set[str]:
            known = set(session.scalars(select(FileRow.id)))
            gone = {file_id for file_id in known if f"{file_id}{SUFFIX}" not in found}
            for file_id in gone:
                logger.warning("the uploaded file %s has vanished from the disk and is forgotten", file_id)
                session.execute(delete(FileRow).where(FileRow.id == file_id))
            return known

        known = {f"{file_id}{SUFFIX}" for file_id in self._database.transaction(work)}
        for name in sorted(found.keys() - known):
            _remove(found[name])
            logger.info("removed %s, left by a crash", name)


def _get(session: Session, file_id: str, principal: Principal) -> FileRow:
    row = session.get(FileRow, file_id)
    if row is None or not principal.may_see(row.owner) or (row.expires is not None and row.expires <= now()):
        raise _no_file(file_id)
    return row


def _no_file(file_id: str) -> UploadNotFoundError:
    return UploadNotFoundError(f"no uploaded file has the id {file_id[:64]!r}. GET /v1/files lists them")


def _keep(partial: Path, path: Path) -> None:
    sync_path(partial)
    partial.rename(path)
    sync_path(path.parent)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
