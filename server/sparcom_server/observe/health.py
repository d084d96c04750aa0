"""Find out whether the service works: reasons for /health and /ready to answer 503."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from sparcom_data.errors import SparcomError
from sparcom_server.database.database import Database
from sparcom_server.service import Service

DATABASE_SECONDS = 5.0


async def health_problems(service: Service) -> list[str]:
    """Return why the service does not work: the database does not answer, or nothing runs jobs any more."""
    problems = [await database_problem(service.database)]
    if not service.stopping and not service.runner.alive:
        problems.append("the task that runs jobs has ended; see the log, then restart the server")
    return [problem for problem in problems if problem]


async def ready_problems(service: Service) -> list[str]:
    """Return why a job that is submitted now cannot run soon. A swap of models is planned work, and no reason."""
    problems = await health_problems(service)
    if service.stopping:
        problems.append("the service is stopping")
    if service.disk.full:
        problems.append(service.disk.problem)
    elif service.runner.problem:
        problems.append(service.runner.problem)
    if not service.models.available:
        shown = ", ".join(f"{name} is {state}" for name, state in service.models.states.items())
        problems.append(f"no engine runs: {shown}")
    return problems


async def database_problem(database: Database, seconds: float = DATABASE_SECONDS) -> str:
    """Return why the database does not answer within `seconds`; empty if it does."""
    try:
        async with asyncio.timeout(seconds):
            await database.read(lambda session: session.execute(text("SELECT version_num FROM alembic_version")).one())
    except TimeoutError:
        return f"the database does not answer within {seconds:g} s"
    except SparcomError as error:
        return str(error)
    return ""
