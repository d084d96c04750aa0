"""Errors of the client, made from the problem details (RFC 9457) of a server."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from sparcom_data.errors import InvalidInputError, SparcomError


class ServerError(SparcomError):
    """Base class: the server refused the request, or did not answer."""


class NoAnswerError(ServerError):
    """No server answers, or its answer is not that of a SPARCOM server."""


class ProblemError(ServerError):
    """The server refused the request.

    Attributes:
        type: urn:sparcom:problem:NAME, stable across releases.
        status: HTTP status.
        detail: the reason. problems: each broken rule, with its field or line.
        retry_after: time after which the server asks to try again, in seconds, or None.
    """

    def __init__(
        self, kind: str, status: int, detail: str, problems: Sequence[str], retry_after: float | None = None
    ) -> None:
        Exception.__init__(self, detail)
        self.type, self.status, self.detail, self.problems = kind, status, detail, list(problems)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"the server refused (status {self.status}): {self.detail}"


class NotAuthenticatedError(ProblemError):
    """The server wants a valid API key. Pass `key`, or set SPARCOM_API_KEY."""


class NotAllowedError(ProblemError):
    """The key's role does not allow the request."""


class NotFoundError(ProblemError):
    """The server has no such model, job, archive, file or key, or the key may not see it."""


class ConflictError(ProblemError):
    """The state of a job or archive does not allow the request."""


class RequestRefusedError(ProblemError, InvalidInputError):
    """The request breaks rules; `problems` lists them."""

    def __str__(self) -> str:
        return "\n".join(self.problems)


class LimitError(ProblemError):
    """The queue is full, or the key has used up a limit."""


_KINDS = {
    401: NotAuthenticatedError,
    403: NotAllowedError,
    404: NotFoundError,
    409: ConflictError,
    422: RequestRefusedError,
    429: LimitError,
}


def problem_of(response: httpx.Response) -> ServerError:
    """Return the error for a response that is no success."""
    try:
        body = response.json()
        kind, detail, problems = body["type"], body["detail"], body["problems"]
    except (ValueError, KeyError, TypeError):
        return NoAnswerError(
            f"{response.url.copy_with(query=None)} must be the address of a SPARCOM server; it answers with status "
            f"{response.status_code} and no problem details. Check the address, and proxies before the server"
        )
    error = _KINDS.get(response.status_code, ProblemError)
    return error(str(kind), response.status_code, str(detail), [str(item) for item in problems], retry_after(response))


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of the header Retry-After, or None. SPARCOM sends no dates in it."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() else None
