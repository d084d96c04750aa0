"""What operators and their machines ask: is it alive, is it ready, what has it done; and the pages for people."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from sparcom_server.metrics import CONTENT_TYPE
from sparcom_server.page import load_page
from sparcom_server.routes.common import ServiceDep
from sparcom_server.schemas import Health, Readiness

router = APIRouter(tags=["system"])


@router.get("/health")
async def health() -> Health:
    """Tell that the process answers, also while models load."""
    return Health()


@router.get("/ready", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Tell whether every model is loaded and its engine lives: 200, otherwise 503."""
    models = service.models
    response.status_code = 200 if models.ready else 503
    return Readiness(ready=models.ready, models={name: models.state(name) for name in models.names})


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Show the counts in Prometheus' text format."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Show models, jobs and archives, and take a submission."""
    return load_page("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Show the routes, from /openapi.json, without anything from elsewhere."""
    return load_page("docs.html")
