"""From an error to an HTTP answer: one table, and the handlers that use it.

Every error body has one form: {"error": {"type", "message", "problems": [...]}}; `problems` lists each broken rule.
"""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sparcom_data import errors
from sparcom_data.instructions import duplicate_id_problems

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


STATUS: dict[type[errors.SparcomError], int] = {
    NotJsonError: 400,
    errors.UnknownModelError: 404,
    errors.JobNotFoundError: 404,
    errors.ArchiveNotFoundError: 404,
    errors.NotAnArchiveError: 404,
    errors.ArchiveExistsError: 409,
    errors.JobStateError: 409,
    errors.IncompleteArchiveError: 409,
    BodyTooLargeError: 413,
    UnsupportedMediaError: 415,
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
    NotReadyError: 503,
    errors.StorageError: 507,
    errors.SparcomError: 500,
}
RETRY_SECONDS = {QueueFullError: 30, NotReadyError: 5}


def status_of(error: errors.SparcomError) -> int:
    """HTTP status of an error: that of its nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(kind: str, message: str, problems: list[str] | None = None) -> dict[str, Any]:
    """The one form of an error body."""
    return {"error": {"type": kind, "message": message, "problems": problems or [message]}}


def error_response(error: errors.SparcomError) -> JSONResponse:
    """The answer to an error that was raised on purpose."""
    retry = RETRY_SECONDS.get(type(error))
    problems = error.problems if isinstance(error, errors.InvalidInputError) else None
    return JSONResponse(
        error_body(type(error).__name__, str(error), problems),
        status_code=status_of(error),
        headers={"Retry-After": str(retry)} if retry else None,
    )


def request_error(error: RequestValidationError) -> errors.SparcomError:
    """What pydantic and FastAPI found wrong with a request, as one of our errors."""
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        where = next(item["loc"][-1] for item in found if item["type"] == "json_invalid")
        reason = next(item["ctx"]["error"] for item in found if item["type"] == "json_invalid")
        return NotJsonError(f"the body must be JSON: {reason} at character {where}")
    if isinstance(error.body, bytes):
        return UnsupportedMediaError("the body must be JSON; send the header 'Content-Type: application/json'")
    return errors.InvalidInputError([_sentence(item) for item in found] + _duplicates(error.body))


def _sentence(item: dict[str, Any]) -> str:
    """Place, rule, and the value where it is short, as `describe_validation_error` words them."""
    place = ".".join(str(part) for part in item["loc"] if part != "body") or "body"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown field; remove it or check its spelling"
    value = repr(item.get("input"))
    shown = f" (got {value})" if len(value) <= 60 and item["type"] not in {"value_error", "missing"} else ""
    return f"{place}: {message}{shown}"


def _duplicates(body: Any) -> list[str]:
    """Ids given twice, found even where other rules are broken too, so that one answer names every problem."""
    items = body.get("instructions") if isinstance(body, dict) else None
    if not isinstance(items, list):
        return []
    ids = [item.get("id") for item in items if isinstance(item, dict)]
    return duplicate_id_problems(id_ for id_ in ids if isinstance(id_, str))


def install_handlers(app: FastAPI) -> None:
    """Give every error of the app the one form."""

    async def on_known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.SparcomError)  # noqa: S101  (registered for this class alone)
        return error_response(error)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return error_response(request_error(error))

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
