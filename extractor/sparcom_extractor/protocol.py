"""Messages between the engine's client and its worker processes.

    client ──Plan (in the request's extra_args)──▶ worker
    client ──FinishedRequest…, by RPC────────────▶ worker ──PollReply──▶ client
                                                   worker ──WorkerDescription, WorkerStatistics──▶ client

vLLM serializes with msgpack, which does not support dataclasses. `to_wire` and `from_wire` convert and validate them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from sparcom_data.errors import DiskFullError, EngineError, SparcomError, StorageError
from sparcom_data.schema.metadata import MoeInfo

PLAN_KEY = "sparcom"  # key of the Plan in a request's extra_args

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Destination of one request's rows: position p, begin <= p < end, is row `row + p - begin` of the token axis.
    index: the instruction's index in the archive. prompt: prompt length in tokens, for errors; -1 if unknown.
    length_unknown: the request may end before `end`, and the engine may compute one row past its end."""

    session: str
    index: int
    row: int
    begin: int
    end: int
    length_unknown: bool = False
    prompt: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or min(self.row, self.index) < 0:
            raise ValueError(f"a plan needs 0 <= begin <= end and row, index >= 0; got {self}")


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """An instruction that has run, with `capacity` rows reserved from `row` on.
    length: number of valid rows; -1 if the instruction failed and its rows are dropped."""

    index: int
    row: int
    capacity: int
    length: int


@dataclass(frozen=True, slots=True)
class DurableInstruction:
    """An instruction with all rows on disk. ids, positions: int32 values as bytes, one per row."""

    index: int
    ids: bytes
    positions: bytes


@dataclass(frozen=True, slots=True)
class FailedInstruction:
    """An instruction with invalid rows."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionError:
    """Why a session ended early. kind: "capture", "storage" if writing failed, or "disk_full"."""

    kind: str
    reason: str

    def exception(self) -> SparcomError:
        """Return the error to raise in the client."""
        kinds: dict[str, type[SparcomError]] = {"storage": StorageError, "disk_full": DiskFullError}
        return kinds.get(self.kind, EngineError)(self.reason)


def storage_kind(error: Exception) -> str:
    """Return the kind of a `SessionError` for an error of reading or writing an archive."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "disk_full" if full or isinstance(error, DiskFullError) else "storage"


@dataclass(frozen=True, slots=True)
class PollReply:
    """Events of one session since the previous poll, and totals.
    drained: the last request has ended and everything is on disk. rows: number of rows delivered, including rows
    recomputed after a preemption. backpressure_seconds: time that delivery waited for the writer.
    read_backs: number of chunks that were written before they were full, for want of memory, and read back.
    written_bytes: bytes of the chunks that were written."""

    completed: tuple[DurableInstruction, ...] = ()
    failed: tuple[FailedInstruction, ...] = ()
    error: SessionError | None = None
    drained: bool = False
    backpressure_seconds: float = 0.0
    rows: int = 0
    read_backs: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """Captured layers of one worker, or the reason why its model cannot be captured.

    layer_ids: layers with a dense FFN. neurons: their width, over all ranks.
    fusion: source of the activation outputs, see `install_all`.
    mode: facts about the engine, e.g. model runner and CUDA graph mode. memory: bytes that capture holds, by purpose.
    """

    refusal: str | None = None
    layer_ids: tuple[int, ...] = ()
    neurons: int = 0
    activation: str = ""
    moe: MoeInfo | None = None
    fusion: str = ""
    mode: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Totals since the worker's start. overhead_seconds: host time that steps spent in capture code."""

    steps: int = 0
    overhead_seconds: float = 0.0
    backpressure_seconds: float = 0.0
    sent_bytes: int = 0


_adapter: Callable[[Any], TypeAdapter[Any]] = lru_cache(TypeAdapter)


def to_wire(message: object) -> Any:
    """Convert a message, or a list of them, to plain dicts, lists, numbers, strings and bytes."""
    if isinstance(message, list):
        return [to_wire(item) for item in message]
    return _adapter(type(message)).dump_python(message)


def from_wire(kind: type[T], value: Any) -> T:
    """Convert the result of `to_wire` back to `kind`. Raises pydantic.ValidationError if it does not match."""
    return cast("T", _adapter(kind).validate_python(value))
