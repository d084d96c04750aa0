"""`/v1/models`, routes for operators (health, readiness, metrics), and the web pages."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from sparcom_server.observe.health import health_problems, ready_problems
from sparcom_server.observe.metrics import CONTENT_TYPE
from sparcom_server.page import load_page
from sparcom_server.routes.common import AdminOnly, DescribeDep, ServiceDep
from sparcom_server.schemas.reports import ERRORS, Health, ModelList, Readiness
from sparcom_server.service import Service

router = APIRouter(tags=["system"], responses=ERRORS)
public = APIRouter(tags=["system"])
"""The routes that need no API key."""


@router.get("/v1/models")
async def list_models(service: ServiceDep, describe: DescribeDep) -> ModelList:
    """List the models that clients may name, with the facts of each once it is loaded."""
    return ModelList(models=[describe.model(service.models.report(name)) for name in service.models.states])


@public.get("/health", responses={503: {"model": Health}})
async def health(service: ServiceDep, response: Response) -> Health:
    """Return 200 while the service works, also while models load; 503 if a restart is needed."""
    problems = await health_problems(service)
    response.status_code = 503 if problems else 200
    return Health(status="failing" if problems else "ok", problems=_hide_paths(service, problems))


@public.get("/ready", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Return 200 if a job that is submitted now can run soon, otherwise 503."""
    problems = await ready_problems(service)
    response.status_code = 503 if problems else 200
    low = [service.disk.problem] if service.disk.problem and not service.disk.full else []
    return Readiness(
        ready=not problems,
        models=service.models.states,
        problems=_hide_paths(service, problems),
        warnings=_hide_paths(service, low),
    )


def _hide_paths(service: Service, texts: list[str]) -> list[str]:
    return [service.access.hide_paths(text, None) for text in texts]


@router.get("/metrics", response_class=Response, dependencies=[AdminOnly])
async def metrics(service: ServiceDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.exposition(await service.snapshot()), media_type=CONTENT_TYPE)


@public.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Show models, jobs and archives, with a form for submissions."""
    return load_page("index.html")


@public.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Show the routes of /openapi.json without loading anything from elsewhere."""
    return load_page("docs.html")
