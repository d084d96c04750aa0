"""Find out whether the service can work: reasons for /health and /ready to answer 503."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sqlalchemy import text

from sparcom_data.errors import SparcomError
from sparcom_server.database.database import Database
from sparcom_server.schemas.reports import ModelState

DATABASE_SECONDS = 5.0


async def database_problem(database: Database) -> str:
    """Return why the database does not answer; empty if it does."""
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            await database.read(lambda session: session.execute(text("SELECT 1")).scalar_one())
    except TimeoutError:
        return f"the database did not answer within {DATABASE_SECONDS:g} s"
    except SparcomError as error:
        return str(error)
    return ""


def task_problem(task: asyncio.Task[None] | None) -> str:
    """Return why the task that runs jobs does not run; empty if it does."""
    if task is not None and not task.done():
        return ""
    error = task.exception() if task is not None and not task.cancelled() else None
    return (
        f"the task that runs jobs has ended{f': {type(error).__name__}: {error}' if error else ''}; restart the server"
    )


def models_problem(states: Mapping[str, ModelState]) -> str:
    """Return why no model can run; empty if one can, or can be loaded."""
    if set(states.values()) <= {"failed"}:
        return f"no model can run: {', '.join(states)} failed; see the log"
    return ""
