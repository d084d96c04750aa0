"""Effects that the steps of a client ask for, and that its driver performs.

Each method of a client is a generator, shared by both clients. It yields effects, and gets their results back. Errors
of an effect are raised at its `yield`. The clients in `client` perform the effects, blocking or with asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. content: bytes, or a file, whose bytes are streamed."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    content: bytes | Path | None = None
    timeout: float = 60.0  # seconds of silence; an event stream is silent for 15 s at most


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; gives the response, read to its end."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and leave its response open for `Next`; gives the response. Closes the stream opened before.

    A response that is no success is read to its end.
    """

    request: Request
    events: bool = False  # server-sent events; otherwise lines


@dataclass(frozen=True, slots=True)
class Next:
    """Give the next event or line of the open response, or None at its end."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Block:
    """Call a function that blocks, such as one that reads files; gives what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Give a value to the caller of a method that iterates."""

    value: T


Effect = Send | Open | Next | Sleep | Block
Steps = Generator[Effect, Any, T]
"""Steps that end with a value of type T."""
Items = Generator[Effect | Emit[T], Any, None]
"""Steps that emit values of type T."""


def emitting(steps: Steps[T]) -> Items[T]:
    """Emit the value with which the steps end."""
    yield Emit((yield from steps))
