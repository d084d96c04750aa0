"""Owners of archives, in the database: who sees an archive, and which job holds it.

An archive that no row describes, such as one of `sparcom extract`, belongs to nobody: only admins see it. Every client
of a server without keys is one.
"""

from __future__ import annotations

import asyncio
import os

from sqlalchemy import select
from sqlalchemy.orm import Session

from sparcom_data.errors import ArchiveNotFoundError, JobStateError
from sparcom_server.access.principal import Principal
from sparcom_server.archives.store import ArchiveStore, no_archive
from sparcom_server.database.database import Database
from sparcom_server.database.tables import ArchiveRow


class ArchiveOwners:
    """Archives as each client sees them. Names are those that the client uses, except where `stored`."""

    def __init__(self, database: Database, archives: ArchiveStore) -> None:
        self._database, self._archives = database, archives

    async def visible(self, principal: Principal) -> list[str]:
        """Return the stored names of the archives that a client sees, newest first."""
        names = await asyncio.to_thread(self._archives.names)
        if principal.is_admin:
            return names
        query = select(ArchiveRow.name).where(ArchiveRow.owner == principal.owner)
        own = await self._database.read(lambda session: set(session.scalars(query)))
        return [name for name in names if name in own]

    async def delete(self, name: str, principal: Principal) -> None:
        """Remove an archive from the disk, and its row.

        Raises:
            ArchiveNotFoundError: the client sees no such archive.
            JobStateError: an unfinished job holds it, or another process writes it.
            StorageError: the operating system refused.
        """
        stored = principal.stored_name(name)
        row = await self._database.read(lambda session: session.get(ArchiveRow, stored))
        if row is not None and row.job_id is not None:
            raise JobStateError(
                f"an archive can be deleted once its extraction has ended; {name!r} belongs to extraction "
                f"{row.job_id}. Cancel it first: DELETE /v1/extractions/{row.job_id}"
            )
        try:
            await self._archives.remove(stored)
        except ArchiveNotFoundError as error:
            raise no_archive(name) from error
        finally:
            await self._database.write(lambda session: self._forget_missing(session, stored))

    async def forget_missing(self) -> None:
        """Delete the rows of archives that are gone and that no job holds."""

        def work(session: Session) -> None:
            for name in session.scalars(select(ArchiveRow.name).where(ArchiveRow.job_id.is_(None))).all():
                self._forget_missing(session, name)

        await self._database.write(work)

    def _forget_missing(self, session: Session, stored: str) -> None:
        row = session.get(ArchiveRow, stored)
        if row is not None and row.job_id is None and not os.path.lexists(self._archives.path(stored)):
            session.delete(row)
