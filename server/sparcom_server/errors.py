"""Map errors to HTTP responses: one table, and the handlers that use it.

Every error body is a problem detail, RFC 9457, with the member `problems`: at most 100 problems of at most 1,000
characters each, whatever the request holds. Its `type` is urn:sparcom:problem:NAME, from the error's class.
"""

from __future__ import annotations

import http
import logging
import re
from collections.abc import Callable, Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sparcom_data import errors

MAX_PROBLEM_CHARACTERS = 1000  # problems repeat names and values of a request
MAX_VALUE_CHARACTERS = 60
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")

logger = logging.getLogger(__name__)


class NotJsonError(errors.SparcomError):
    """The body is not JSON."""


class NotMultipartError(errors.SparcomError):
    """The body is not a multipart form with one file."""


class UnsupportedMediaError(errors.SparcomError):
    """The body is declared as another type than the route takes."""


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


class LimitExceededError(errors.SparcomError):
    """The key has used up one of its limits. `retry` is the time after which to try again, in seconds, or None."""

    def __init__(self, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.retry = retry


class NotAuthenticatedError(errors.SparcomError):
    """The request has no valid API key."""


class ForbiddenError(errors.SparcomError):
    """The key's role does not allow the request."""


class UploadNotFoundError(errors.SparcomError):
    """No uploaded file has this id."""


class KeyNotFoundError(errors.SparcomError):
    """No API key has this id."""


class IdempotencyError(errors.SparcomError):
    """The idempotency key was used for another request."""


class DatabaseError(errors.StorageError):
    """The database failed; nothing was changed. The same request can succeed later."""


class DatabaseFullError(DatabaseError):
    """The disk of the database is full; nothing was changed."""


class HostNotAllowedError(errors.SparcomError):
    """The Host header does not name this service."""


class CrossSiteError(errors.SparcomError):
    """A page of another site made the browser send the request."""


STATUS: dict[type[errors.SparcomError], int] = {
    NotJsonError: 400,
    NotMultipartError: 400,
    IncompleteBodyError: 400,
    NotAuthenticatedError: 401,
    CrossSiteError: 403,
    ForbiddenError: 403,
    errors.UnknownModelError: 404,
    errors.JobNotFoundError: 404,
    errors.ArchiveNotFoundError: 404,
    errors.NotAnArchiveError: 404,
    UploadNotFoundError: 404,
    KeyNotFoundError: 404,
    errors.ArchiveExistsError: 409,
    errors.JobStateError: 409,
    errors.IncompleteArchiveError: 409,
    BodyTooLargeError: 413,
    UnsupportedMediaError: 415,
    HostNotAllowedError: 421,
    errors.InvalidInputError: 422,
    IdempotencyError: 422,
    errors.UnsupportedModelError: 422,
    QueueFullError: 429,
    LimitExceededError: 429,
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
    DatabaseError: 503,
    DatabaseFullError: 507,
    errors.StorageError: 507,
    errors.DiskFullError: 507,
    errors.SparcomError: 500,
}
RETRY_SECONDS = {QueueFullError: 30, NotReadyError: 5, BusyError: 5, DatabaseError: 5}


def status_of(error: errors.SparcomError) -> int:
    """Return the HTTP status of an error, from its nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


class ProblemResponse(JSONResponse):
    """A response with a problem detail."""

    media_type = "application/problem+json"


def problem_response(
    name: str, status: int, problems: Sequence[str], headers: Mapping[str, str] | None = None
) -> ProblemResponse:
    """Return a problem detail. name: CamelCase, becomes the type. problems: at least one."""
    shown = [_shorten(problem) for problem in problems]
    body = {
        "type": f"urn:sparcom:problem:{_WORD.sub('-', name).lower()}",
        "title": _WORD.sub(" ", name).capitalize(),
        "status": status,
        "detail": "\n".join(shown),
        "problems": shown,
    }
    return ProblemResponse(body, status, headers)


def status_problem(status: int, problem: str, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    """Return a problem detail that the status names."""
    name = http.HTTPStatus(status).phrase.title().replace(" ", "")
    return problem_response(name, status, [problem], headers)


def error_response(error: errors.SparcomError, hide: Callable[[str], str] = str) -> ProblemResponse:
    """Return the response for a SparcomError. hide: removes from a message what the client must not see."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NotAuthenticatedError) else {}
    if retry := getattr(error, "retry", None) or RETRY_SECONDS.get(type(error)):
        headers["Retry-After"] = str(retry)
    problems = error.problems if isinstance(error, errors.InvalidInputError) else [str(error)]
    shown = [hide(problem) for problem in problems]
    return problem_response(type(error).__name__.removesuffix("Error"), status_of(error), shown, headers)


def describe_problem(item: ErrorDetails, *prefix: str | int, where: str = "") -> str:
    """Return one of pydantic's problems as a sentence: field, rule, and the value if it is short.

    Args:
        prefix: location of the value in the request. where: beginning of the sentence, such as a line of a file.
    """
    field = ".".join(_shorten(str(part)) for part in (*prefix, *item["loc"]) if part != "body")
    field = ": ".join(filter(None, (where, field))) or "body"
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
    async def on_known(request: Request, error: errors.SparcomError) -> JSONResponse:
        principal = getattr(request.state, "principal", None)
        hide_paths = request.app.state.service.access.hide_paths
        return error_response(error, lambda text: hide_paths(text, principal))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(errors.InvalidInputError([describe_problem(item) for item in error.errors()]))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
        return status_problem(error.status_code, str(error.detail), headers)

    @app.exception_handler(OSError)
    async def on_storage(request: Request, error: OSError) -> JSONResponse:
        if error.errno is None:  # not of the operating system
            return await on_unexpected(request, error)
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await on_known(request, errors.StorageError(f"reading or writing failed: {error.strerror}. Try again"))

    @app.exception_handler(Exception)
    async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = "the service failed unexpectedly; its log has the traceback"
        return problem_response("InternalError", 500, [message])


def _allowed_methods(request: Request) -> str:
    """Return the methods of a path. Starlette names only those of the first route that fits."""
    fitting = (route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE)
    return ", ".join(sorted({method for route in fitting for method in getattr(route, "methods", None) or ()}))
