"""Create the app: the service, the routes, the limits and the errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from sparcom_data.errors import SparcomError
from sparcom_server.errors import install_handlers
from sparcom_server.http.body_limit import BodyLimit
from sparcom_server.http.headers import add_headers
from sparcom_server.http.openapi import compose
from sparcom_server.http.site_check import SiteCheck
from sparcom_server.http.upload_body import FORM_BYTES
from sparcom_server.observe.requests import RequestLog
from sparcom_server.observe.tracing import start_tracing
from sparcom_server.protocols import ModelSource
from sparcom_server.routes import archives, extractions, files, keys, results, system
from sparcom_server.routes.common import authenticate
from sparcom_server.service import Service
from sparcom_server.settings import ServerSettings


def create_app(
    sources: Mapping[str, ModelSource],
    settings: ServerSettings,
    on_failure: Callable[[SparcomError], None] | None = None,
) -> FastAPI:
    """Return the app that serves these models. It loads the first once started; /health answers meanwhile.

    Args:
        sources: each model, by the name that clients use.
        on_failure: called if the service gives up on its engines; the caller should then end the server.

    Raises:
        InvalidInputError: there is no model.
    """
    service = Service(sources, settings, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()
            await asyncio.to_thread(stop_tracing)

    app = FastAPI(
        title="SPARCOM",
        description="Records which feed-forward neurons fire and which experts a router picks, for every token.",
        version=version("sparcom"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its parts from elsewhere; ours is in routes/system.py
        redoc_url=None,
    )
    app.state.service = service
    for module in (extractions, results, files, archives, keys, system):  # in the order in which requests try them
        app.include_router(module.router, dependencies=[Depends(authenticate)])
    app.include_router(system.public)
    compose(app)
    uploads = {files.router.prefix: settings.max_file_bytes + FORM_BYTES}
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds, uploads=uploads)
    hosts = (settings.host, *settings.allowed_hosts)
    app.add_middleware(SiteCheck, hosts=hosts, origins=settings.cors_origins)
    app.add_middleware(RequestLog, metrics=service.metrics)  # the last one added runs first; keep this one last
    stop_tracing = start_tracing(app)  # it wraps the stack, too, and must find Starlette's
    stack = app.build_middleware_stack
    app.build_middleware_stack = lambda: add_headers(stack(), settings.cors_origins)  # type: ignore[method-assign]
    install_handlers(app)
    return app
