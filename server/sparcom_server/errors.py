"""Map errors to HTTP responses: one table, and the handlers that use it.

Every error body has the form {"error": {"type", "message", "problems": [...]}}. It holds at most 100 problems of at
most 1,000 characters each, whatever the request holds.
"""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from sparcom_data import errors

MAX_PROBLEM_CHARACTERS = 1000  # problems repeat names and values of a request
MAX_VALUE_CHARACTERS = 60

logger = logging.getLogger(__name__)


class NotJsonError(errors.SparcomError):
    """The body is not JSON."""


class UnsupportedMediaError(errors.SparcomError):
    """The body is not declared as JSON."""


class QueueFullError(errors.SparcomError):
    """The job queue is full."""


class NotReadyError(errors.SparcomError):
    """The model is still loading, or the service is stopping."""


class BodyTooLargeError(errors.SparcomError):
    """The request body is larger than the operator allows."""


class IncompleteBodyError(errors.SparcomError):
    """The client disconnected before its request body was complete."""


class BusyError(errors.SparcomError):
    """The service is at its limit of connections, request bodies or event streams."""


class HostNotAllowedError(errors.SparcomError):
    """The Host header does not name this service."""


class CrossSiteError(errors.SparcomError):
    """A page of another site made the browser send the request."""


STATUS: dict[type[errors.SparcomError], int] = {
    NotJsonError: 400,
    IncompleteBodyError: 400,
    CrossSiteError: 403,
    errors.UnknownModelError: 404,
    errors.JobNotFoundError: 404,
    errors.ArchiveNotFoundError: 404,
    errors.NotAnArchiveError: 404,
    errors.ArchiveExistsError: 409,
    errors.JobStateError: 409,
    errors.IncompleteArchiveError: 409,
    BodyTooLargeError: 413,
    UnsupportedMediaError: 415,
    HostNotAllowedError: 421,
    errors.InvalidInputError: 422,
    errors.UnsupportedModelError: 422,
    QueueFullError: 429,
    errors.DamagedArchiveError: 500,
    errors.ArchiveError: 500,
    errors.NewerFormatError: 501,
    errors.MissingExtraError: 501,
    errors.UnsupportedArchiveError: 501,
    errors.EngineError: 503,
    errors.ModelUnavailableError: 503,
    errors.TrainingFailedError: 500,
    NotReadyError: 503,
    BusyError: 503,
    errors.StorageError: 507,
    errors.SparcomError: 500,
}
RETRY_SECONDS = {QueueFullError: 30, NotReadyError: 5, BusyError: 5}


def status_of(error: errors.SparcomError) -> int:
    """Return the HTTP status of an error, from its nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(kind: str, message: str, problems: list[str] | None = None) -> dict[str, Any]:
    """Return the body of an error. Without `problems` the message is the only problem."""
    shown = [_shorten(problem) for problem in problems or [message]]
    return {"error": {"type": kind, "message": "\n".join(shown), "problems": shown}}


def error_response(error: errors.SparcomError) -> JSONResponse:
    """Return the response for a SparcomError."""
    retry = RETRY_SECONDS.get(type(error))
    problems = error.problems if isinstance(error, errors.InvalidInputError) else None
    return JSONResponse(
        error_body(type(error).__name__, str(error), problems),
        status_code=status_of(error),
        headers={"Retry-After": str(retry)} if retry else None,
    )


def describe_problem(item: ErrorDetails, *prefix: str | int) -> str:
    """Return one of pydantic's problems as a sentence: field, rule, and the value if it is short."""
    field = ".".join(_shorten(str(part)) for part in (*prefix, *item["loc"]) if part != "body") or "body"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown field; remove it or check its spelling"
    value = item.get("input")
    is_long = isinstance(value, str | bytes | list | tuple | dict) and len(value) > MAX_VALUE_CHARACTERS
    if is_long or item["type"] in {"value_error", "missing"} or len(shown := repr(value)) > MAX_VALUE_CHARACTERS:
        return f"{field}: {message}"
    return f"{field}: {message} (got {shown})"


def _shorten(text: str) -> str:
    if len(text) <= MAX_PROBLEM_CHARACTERS:
        return text
    return f"{text[:MAX_PROBLEM_CHARACTERS]}… ({len(text):,} characters)"


def install_handlers(app: FastAPI) -> None:
    """Give every error of the app the same form."""

    @app.exception_handler(errors.SparcomError)
    async def on_known(_: Request, error: errors.SparcomError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(errors.InvalidInputError([describe_problem(item) for item in error.errors()]))

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        kind = http.HTTPStatus(error.status_code).phrase.replace(" ", "")
        return JSONResponse(error_body(kind, str(error.detail)), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = "the service failed unexpectedly; its log has the traceback"
        return JSONResponse(error_body("InternalError", message), status_code=500)
