"""The client of a SPARCOM server: `Client`, and `AsyncClient` for asyncio. Needs neither torch nor FastAPI."""

from sparcom_client.client import AsyncClient, Client
from sparcom_client.errors import (
    ConflictError,
    LimitError,
    NoAnswerError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    ProblemError,
    RequestRefusedError,
    ServerError,
)
from sparcom_client.types import Job

__all__ = [
    "AsyncClient",
    "Client",
    "ConflictError",
    "Job",
    "LimitError",
    "NoAnswerError",
    "NotAllowedError",
    "NotAuthenticatedError",
    "NotFoundError",
    "ProblemError",
    "RequestRefusedError",
    "ServerError",
]
