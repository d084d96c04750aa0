"""`/v1/models`, routes for operators (health, readiness, metrics), and the web pages."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from sparcom_server.metrics import CONTENT_TYPE
from sparcom_server.page import load_page
from sparcom_server.routes.common import AdminOnly, DescribeDep, ServiceDep
from sparcom_server.schemas.reports import ERRORS, Health, ModelList, Readiness

router = APIRouter(tags=["system"], responses=ERRORS)
public = APIRouter(tags=["system"])
"""The routes that need no API key."""


@router.get("/v1/models")
async def list_models(service: ServiceDep, describe: DescribeDep) -> ModelList:
    """List the models that clients may name, with the facts of each once it is loaded."""
    return ModelList(models=[describe.model(service.models.report(name)) for name in service.models.states])


@public.get("/health")
async def health() -> Health:
    """Return 200 while the process runs, also while models load."""
    return Health()


@public.get("/ready", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Return 200 if an engine runs and jobs can run, otherwise 503."""
    states = service.models.states
    is_ready = "ready" in states.values() and not service.models.failure
    response.status_code = 200 if is_ready else 503
    return Readiness(ready=is_ready, models=states)


@router.get("/metrics", response_class=Response, dependencies=[AdminOnly])
async def metrics(service: ServiceDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)


@public.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Show models, jobs and archives, with a form for submissions."""
    return load_page("index.html")


@public.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Show the routes of /openapi.json without loading anything from elsewhere."""
    return load_page("docs.html")
