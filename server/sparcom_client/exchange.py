"""Exchange one request for one answer: retries with back-off, and errors from problem details."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from sparcom_client.effects import Open, Request, Send, Sleep, Steps
from sparcom_client.errors import NoAnswerError, ServerError, problem_of, retry_after

DEFAULT_SERVER = "http://127.0.0.1:8000"
PATIENCE = 60.0  # seconds
CONNECT_PATIENCE = 10.0  # where nothing listens: the address may be wrong
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0  # seconds
RETRIED = frozenset({429, 502, 503, 504})

logger = logging.getLogger("sparcom_client")


@dataclass(frozen=True, slots=True)
class Connection:
    """Address and key of a server. patience: how long a request is retried, in seconds; 0 for no retry."""

    server: str
    key: str | None = field(repr=False)
    patience: float = PATIENCE

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def connection(server: str | None = None, key: str | None = None, patience: float = PATIENCE) -> Connection:
    """Return a connection, with the environment's server and key where none are given."""
    server = server or os.environ.get("SPARCOM_SERVER") or DEFAULT_SERVER
    return Connection(server.rstrip("/"), key or os.environ.get("SPARCOM_API_KEY") or None, patience)


def send(
    api: Connection,
    request: Request,
    *,
    accepted: Callable[[int, int], bool] = lambda status, _: 200 <= status < 300,
    may_repeat: bool = True,
    patience: float | None = None,
    effect: type[Send | Open] = Send,
) -> Steps[httpx.Response]:
    """Send a request until it is answered.

    Connection errors and the statuses 429, 502, 503, 504 are retried with growing delays, or after Retry-After.

    Args:
        accepted: takes a status and the number of the attempt, from 1; whether that answer is a success.
        may_repeat: whether the server may see the request twice. If not, it is retried only if it cannot have arrived.
        patience: instead of the connection's.
        effect: `Open` leaves the response open.

    Raises:
        ProblemError: the server refused. NoAnswerError: it does not answer.
    """
    started, limit = time.monotonic(), api.patience if patience is None else patience
    for attempt, backoff in enumerate(delays(), start=1):
        delay, cause, allowed = backoff, None, limit
        error: ServerError
        try:
            response: httpx.Response = yield effect(request)
        except (httpx.TransportError, httpx.InvalidURL) as problem:
            error, cause = no_answer(api, problem), problem
            again = not isinstance(problem, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL)
            unconnected = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
            again &= may_repeat or unconnected
            if unconnected and patience is None:
                allowed = min(limit, CONNECT_PATIENCE)
        else:
            if accepted(response.status_code, attempt):
                return response
            error = problem_of(response)
            again, delay = response.status_code in RETRIED, retry_after(response) or backoff
        if not again or time.monotonic() + delay - started > allowed:
            raise error from cause
        logger.warning("%s; retrying in %.1f s", error, delay)
        yield Sleep(delay)
    raise AssertionError("delays never end")


def delays() -> Iterator[float]:
    """Yield the seconds before each retry: doubling up to a bound, with jitter so that clients do not retry at once."""
    longest = FIRST_DELAY
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311  (no secret)
        longest = min(2 * longest, LONGEST_DELAY)


def no_answer(api: Connection, error: Exception) -> NoAnswerError:
    """Return the error for a server that cannot be reached."""
    reason = str(error) or type(error).__name__
    return NoAnswerError(
        f"no server answers at {api.server}: {reason}. Start one with `sparcom serve`, or give its address with "
        "--server or SPARCOM_SERVER"
    )
