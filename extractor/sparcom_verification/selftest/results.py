"""What a step of the self-test says: facts, checks that pass or fail, and measurements, which do neither.

Plain values only: they go through JSON from the step's process to the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Status = Literal["waiting", "running", "done", "failed", "cut short", "not run", "not applicable"]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something worth knowing about the machine or the engine."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison of `total` things of which `differing` differ, and at most the share `allowed` may, or one of them.

    Where `allowed` is 0, none may. unit: what is counted: bits, tokens, counts, values. note: what else is to be said.
    verb: what the differing ones do, for the table.
    """

    name: str
    compared: str
    total: int
    differing: int
    unit: str = "bits"
    allowed: float = 0.0
    note: str = ""
    verb: str = "differ"

    @property
    def passed(self) -> bool:
        """Whether it holds. A comparison of nothing holds nothing."""
        limit = max(1.0, self.allowed * self.total) if self.allowed else 0.0
        return self.total > 0 and self.differing <= limit

    @property
    def share(self) -> float:
        """Differing things as a share of all."""
        return self.differing / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured value: the median of `rounds`, which lay between `low` and `high`. goal: what it should reach."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    goal: float | None = None
    note: str = ""


Row = Fact | Check | Measure

_KINDS: dict[str, type[Fact] | type[Check] | type[Measure]] = {"fact": Fact, "check": Check, "measure": Measure}


def row_to_json(row: Row) -> dict[str, Any]:
    """The row as JSON values; a check also says its verdict."""
    kind = next(name for name, kind in _KINDS.items() if isinstance(row, kind))
    verdict = {"passed": row.passed} if isinstance(row, Check) else {}
    return {"kind": kind, **asdict(row), **verdict}


def row_from_json(value: dict[str, Any]) -> Row:
    """The row that `row_to_json` wrote."""
    kind = _KINDS[value["kind"]]
    names = {field.name for field in fields(kind)}
    return kind(**{name: part for name, part in value.items() if name in names})


@dataclass(slots=True)
class StepResult:
    """How a step went. reason: why it failed or did not run. log: what is worth keeping of what its process printed."""

    name: str
    status: Status = "waiting"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the step broke or one of its checks does not hold."""
        return self.status == "failed" or any(isinstance(row, Check) and not row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 1),
            "rows": [row_to_json(row) for row in self.rows],
            **({"log": self.log} if self.log else {}),
        }
