"""From an error to an HTTP answer: one table, and the handlers that use it.

Every error body has one form: {"error": {"type", "message", "problems": [...]}}; `problems` lists each broken rule.
An answer is bounded: 100 problems at most, each of 1,000 characters at most, whatever the request held.
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

MAX_CHARACTERS = 1000  # of one problem: names and values of a request are repeated in it
SHOWN_VALUE = 60

log = logging.getLogger(__name__)


class NotJsonError(errors.SparcomError):
    """The body is not JSON."""


class UnsupportedMediaError(errors.SparcomError):
    """The body is not declared as JSON."""


class QueueFullError(errors.SparcomError):
    """As many jobs wait as may."""


class NotReadyError(errors.SparcomError):
    """The model is still loading, or the service is stopping."""


class BodyTooLargeError(errors.SparcomError):
    """The request body is larger than the operator allows."""


class IncompleteBodyError(errors.SparcomError):
    """The client went away before its request body was complete."""


class SlowBodyError(errors.SparcomError):
    """The request body comes too slowly."""


class BusyError(errors.SparcomError):
    """The service holds as many request bodies or event streams as it may."""


class HostNotAllowedError(errors.SparcomError):
    """The request names a host that this service does not answer for."""


class CrossSiteError(errors.SparcomError):
    """A page of another site sent the request."""


STATUS: dict[type[errors.SparcomError], int] = {
    NotJsonError: 400,
    IncompleteBodyError: 400,
    CrossSiteError: 403,
    errors.UnknownModelError: 404,
    errors.JobNotFoundError: 404,
    errors.ArchiveNotFoundError: 404,
    errors.NotAnArchiveError: 404,
    SlowBodyError: 408,
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
    """HTTP status of an error: that of its nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(kind: str, message: str, problems: list[str] | None = None) -> dict[str, Any]:
    """The one form of an error body. Without `problems` the message is the only one; with them it is all of them."""
    shown = [_short(problem) for problem in problems or [message]]
    return {"error": {"type": kind, "message": "\n".join(shown), "problems": shown}}


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text):,} characters)"


def error_response(error: errors.SparcomError) -> JSONResponse:
    """The answer to an error that was raised on purpose."""
    retry = RETRY_SECONDS.get(type(error))
    problems = error.problems if isinstance(error, errors.InvalidInputError) else None
    return JSONResponse(
        error_body(type(error).__name__, str(error), problems),
        status_code=status_of(error),
        headers={"Retry-After": str(retry)} if retry else None,
    )


def sentence(item: ErrorDetails, *place: str | int) -> str:
    """One problem that pydantic found: place, rule, and the value where it is short."""
    where = ".".join(_short(str(part)) for part in (*place, *item["loc"]) if part != "body") or "body"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown field; remove it or check its spelling"
    value = _short_value(item.get("input")) if item["type"] not in {"value_error", "missing"} else ""
    return f"{where}: {message}{value}"


def _short_value(value: object) -> str:
    """The value in brackets; nothing for a long one, which is not even spelt out."""
    if isinstance(value, str | bytes | list | tuple | dict) and len(value) > SHOWN_VALUE:
        return ""
    shown = repr(value)
    return f" (got {shown})" if len(shown) <= SHOWN_VALUE else ""


def install_handlers(app: FastAPI) -> None:
    """Give every error of the app the one form."""

    async def on_known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.SparcomError)  # noqa: S101  (registered for this class alone)
        return error_response(error)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return error_response(errors.InvalidInputError([sentence(item) for item in error.errors()]))

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        kind = http.HTTPStatus(error.status_code).phrase.replace(" ", "")
        return JSONResponse(error_body(kind, str(error.detail)), status_code=error.status_code, headers=error.headers)

    async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(
            error_body("InternalError", "the service failed in a way it should not; its log has the traceback"),
            status_code=500,
        )

    app.add_exception_handler(errors.SparcomError, on_known)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unexpected)
