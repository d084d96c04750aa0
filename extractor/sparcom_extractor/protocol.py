"""The types that cross process borders: between the engine's client and its worker processes.

    client ──Plan (in the request's extra_args)──▶ worker
    client ──FinishedRequest…, by RPC────────────▶ worker ──PollReply──▶ client
                                                   worker ──WorkerDescription, WorkerStatistics──▶ client

vLLM serializes with msgpack, which knows no dataclasses: `to_wire` and `from_wire` convert at both ends and validate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from sparcom_data.schema.metadata import MoeInfo

PLAN_KEY = "sparcom"  # of a Plan within a request's extra_args

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Says where the rows of one request go: position p, begin <= p < end, is row `row + p - begin` of the token axis.

    Attributes:
        session: name of the capture session.
        index: of the instruction in its archive.
        length_unknown: the request may end before `end`. The engine may compute one row past its end.
        prompt: tokens of the prompt, for errors; -1 if unknown.
    """

    session: str
    index: int
    row: int
    begin: int
    end: int
    length_unknown: bool = False
    prompt: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or min(self.row, self.index) < 0:
            raise ValueError(f"a plan has 0 <= begin <= end and row, index >= 0; got {self}")


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """Reports that one instruction has run.

    Attributes:
        row: first row of the instruction on the token axis. capacity: rows reserved there.
        length: rows that count; -1 if the instruction failed and its rows are dropped.
    """

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
    """An instruction with rows that cannot be trusted."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionError:
    """Why a session ended early. kind: "capture", or "storage" if writing failed."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class PollReply:
    """Everything that happened in a session since the previous poll.

    Attributes:
        drained: after the last request: everything is on disk.
        backpressure_seconds: total time that delivery waited for the writer.
        rows: total rows delivered, including those computed again after a preemption.
    """

    completed: tuple[DurableInstruction, ...] = ()
    failed: tuple[FailedInstruction, ...] = ()
    error: SessionError | None = None
    drained: bool = False
    backpressure_seconds: float = 0.0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """Describes what one worker process captures.

    Attributes:
        refusal: why the model cannot be captured; all other fields are then empty.
        layer_ids: layers with a dense FFN. neurons: neurons of each, over all ranks.
        fusion: how activation outputs are made, see `install_all`.
        mode: facts about the engine, e.g. model runner and CUDA graph mode.
        memory: bytes that capture holds, by purpose.
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
    """Convert what `to_wire` made back to `kind`.

    Raises:
        pydantic.ValidationError: the value is not of that form, e.g. if it comes from another version.
    """
    result: T = _adapter(kind).validate_python(value)
    return result
