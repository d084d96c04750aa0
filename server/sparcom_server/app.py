"""Makes the app: the service, the routes, the errors, and the life of all of it. Nothing is made at import."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from sparcom_data.errors import SparcomError
from sparcom_server.errors import install_handlers
from sparcom_server.http.body_limit import BodyLimit
from sparcom_server.http.openapi import add_request_schema
from sparcom_server.http.site_check import SiteCheck
from sparcom_server.protocols import EngineStarter
from sparcom_server.routes import archives, extractions, models, system
from sparcom_server.schemas import ExtractionRequest
from sparcom_server.service import Service
from sparcom_server.settings import ServerSettings

DESCRIPTION = "Which feed-forward neurons fire, at every token of thousands of instructions."


def create_app(
    starters: Mapping[str, EngineStarter],
    settings: ServerSettings,
    on_failure: Callable[[SparcomError], None] | None = None,
) -> FastAPI:
    """The app that serves these models.

    Models are loaded one after the other once the app has started, so that /health answers meanwhile.

    Args:
        starters: what loads each model, by the name that clients use.
        settings: where it listens and keeps its data, and its limits.
        on_failure: called with the error when a model cannot be started or its engine dies; the caller should then end
            the server.

    Raises:
        InvalidInputError: there is no model.
    """
    service = Service(starters, settings, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="SPARCOM",
        description=DESCRIPTION,
        version=version("sparcom"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its parts from elsewhere; ours is in routes/system.py
        redoc_url=None,
    )
    app.state.service = service
    for module in (extractions, archives, models, system):
        app.include_router(module.router)
    add_request_schema(app, ExtractionRequest)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(SiteCheck, hosts=(settings.host, *settings.allowed_hosts))  # the last is asked first
    install_handlers(app)
    return app
