"""`/v1/models`, routes for operators (health, readiness, metrics), and the web pages."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from sparcom_server.metrics import CONTENT_TYPE
from sparcom_server.page import load_page
from sparcom_server.routes.common import ServiceDep
from sparcom_server.schemas.reports import Health, ModelList, Readiness

router = APIRouter(tags=["system"])


@router.get("/v1/models")
async def list_models(service: ServiceDep) -> ModelList:
    """List the models that clients may name, with the facts of each once it is loaded."""
    return ModelList(models=[service.models.report(name) for name in service.models.states])


@router.get("/health")
async def health() -> Health:
    """Return 200 while the process runs, also while models load."""
    return Health()


@router.get("/ready", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Return 200 if an engine runs and jobs can run, otherwise 503."""
    states = service.models.states
    is_ready = "ready" in states.values() and not service.models.failure
    response.status_code = 200 if is_ready else 503
    return Readiness(ready=is_ready, models=states)


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Show models, jobs and archives, with a form for submissions."""
    return load_page("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Show the routes of /openapi.json without loading anything from elsewhere."""
    return load_page("docs.html")
