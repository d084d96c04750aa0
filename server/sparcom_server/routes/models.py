"""`/v1/models`: what the operator serves."""

from __future__ import annotations

from fastapi import APIRouter

from sparcom_server.routes.common import ServiceDep
from sparcom_server.schemas import ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(service: ServiceDep) -> ModelList:
    """List the models that clients may name, with what is known of each once it is loaded."""
    return ModelList(models=[service.models.report(name) for name in service.models.names])
