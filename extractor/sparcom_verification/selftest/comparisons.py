"""Compare archives: the same token ids, experts and bits but for rounding, counts that are the masks' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive, open_archive
from sparcom_data.verify import verify_archive
from sparcom_extractor.writer.counting import count_rows
from sparcom_verification.selftest.results import Check

# The share of bits that may fall on the other side of zero where two right computations round differently. float32:
# measured against transformers on SmolLM2, 0.34 to 0.44 in 10⁶. bfloat16: the limit of `sparcom verify`.
ROUNDING_SHARE = {"float32": 3e-6, "bfloat16": 2e-2}

# The share of choices of experts (tokens × layers) that may be of others: where two experts score alike, rounding
# decides, and what follows such a choice is not rounding any more. Between transformers in bfloat16 and in float32 up
# to 1 in 200 were found. A row that belongs to another token has nearly all its choices wrong.
ROUTE_SHARE = {"float32": 1e-3, "bfloat16": 2e-2}
# How far the combine weights of one choice may be apart, and the share of them that may be further.
WEIGHT_TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
WEIGHT_SHARE = {"float32": 1e-4, "bfloat16": 1e-2}

Rows = dict[str, NDArray[Any]]


@dataclass(slots=True)
class _Tally:
    """So many things compared, and so many of them that differ."""

    total: int = 0
    differing: int = 0

    def add(self, wrong: NDArray[np.bool_]) -> None:
        self.total += wrong.size
        self.differing += int(wrong.sum())


@dataclass(slots=True)
class _Difference:
    """Of two archives: token ids, routes, combine weights and bits compared. left_out: rows whose bits were not."""

    dtype: str
    ids: _Tally = field(default_factory=_Tally)
    routes: _Tally = field(default_factory=_Tally)
    weights: _Tally = field(default_factory=_Tally)
    bits: _Tally = field(default_factory=_Tally)
    left_out: int = 0

    def add_ids(self, left: NDArray[np.int32], right: NDArray[np.int32]) -> None:
        """One instruction's; what one of them lacks differs."""
        shared = min(len(left), len(right))
        self.ids.add(left[:shared] != right[:shared])
        self.ids.add(np.ones(abs(len(left) - len(right)), dtype=np.bool_))

    def add_experts(self, left: Rows, right: Rows) -> int:
        """One instruction's, their choices in one order; how many rows, from the first, went through the same experts.

        Rows after another choice were computed from other numbers: only their choices are compared.
        """
        wrong = (left["router/expert"] != right["router/expert"]).any(axis=-1)
        self.routes.add(wrong)
        other = wrong.any(axis=-1)
        same = int(other.argmax()) if other.any() else len(other)
        self.left_out += len(other) - same
        apart = np.abs(left["router/weight"][:same] - right["router/weight"][:same])
        self.weights.add(~(apart <= WEIGHT_TOLERANCE[self.dtype]))
        return same

    def add_bits(self, left: NDArray[np.uint8], right: NDArray[np.uint8], neurons: int) -> None:
        """Packed masks, neurons on the last axis."""
        self.bits.total += int(np.prod(left.shape[:-1])) * neurons
        self.bits.differing += int(np.bitwise_count(left ^ right).sum())


def same_rows(one: Path, other: Path, name: str, compared: str, dtype: str) -> Iterator[Check]:
    """Checks: token ids and lengths are equal; no more bits differ than rounding in `dtype` explains; and where the
    model has experts, no more choices of them, and combine weights."""
    found = _difference(open_archive(one), open_archive(other), dtype)
    note = f"{found.left_out:,} rows after another choice of experts left out" if found.left_out else ""

    def check(what: str, tally: _Tally, unit: str, allowed: float = 0.0, note: str = "") -> Check:
        return Check(f"{name}, {what}", compared, tally.total, tally.differing, unit, allowed, note)

    yield check("token ids", found.ids, "token ids")
    if open_archive(one).moe is not None:
        yield check("routes", found.routes, "choices", ROUTE_SHARE[dtype])
        yield check("combine weights", found.weights, "weights", WEIGHT_SHARE[dtype])
    yield check("masks", found.bits, "bits", ROUNDING_SHARE[dtype], note)


def _difference(one: Archive, other: Archive, dtype: str) -> _Difference:
    found = _Difference(dtype)
    for index in range(len(one.instructions)):
        (left_ids, left), (right_ids, right) = rows_of(one, index), rows_of(other, index)
        found.add_ids(left_ids, right_ids)
        rows = min(len(left_ids), len(right_ids))
        left, right = ({key: part[:rows] for key, part in side.items()} for side in (left, right))
        if one.moe is not None:
            left, right = _by_expert(left), _by_expert(right)
            rows = found.add_experts(left, right)
        for item in one.captured:
            if item.packed:
                found.add_bits(left[item.name][:rows], right[item.name][:rows], item.neurons)
    return found


def _by_expert(rows: Rows) -> Rows:
    """The same rows, the choices of every row by the expert's number: two that weigh alike may change places."""
    order = rows["router/expert"].argsort(axis=-1, kind="stable")
    sorted_rows = {name: np.take_along_axis(rows[name], order, axis=-1) for name in ("router/expert", "router/weight")}
    masks = np.take_along_axis(rows["expert_neuron/active"], order[..., None], axis=-2)
    return rows | sorted_rows | {"expert_neuron/active": masks}


def ids_of(archive: Archive, index: int) -> NDArray[np.int32]:
    """Token ids (rows,) of one instruction."""
    return archive.read_tokens(*_span(archive, index))[0]


def rows_of(archive: Archive, index: int) -> tuple[NDArray[np.int32], Rows]:
    """Token ids (rows,) of one instruction, and its rows of every captured array, by name."""
    start, stop = _span(archive, index)
    return ids_of(archive, index), {item.name: archive.read_rows(item.name, start, stop) for item in archive.captured}


def _span(archive: Archive, index: int) -> tuple[int, int]:
    table = archive.instructions
    start = int(table.token_start[index])
    return start, start + int(table.token_length[index])


def same_counts(counted: Path, masks: Path, name: str) -> Check:
    """The counts of one archive are the sums over the rows of the other, exactly, of every component."""
    counts, rows = open_archive(counted), open_archive(masks)
    found = _Tally()
    for index in range(len(rows.instructions)):
        own = rows_of(rows, index)[1]
        for item in counts.captured:
            expected = np.zeros(item.row, dtype=np.uint32)
            count_rows(item.name, own, expected)
            found.add(counts.read_rows(item.name, index, index + 1)[0] != expected)
    compared = "granularity count against the counted masks"
    return Check(f"{name}, counts", compared, found.total, found.differing, "counts")


def sound(path: Path, name: str, tokenizer: Any = None) -> Check:
    """`verify_archive` finds nothing: format, checksums, states, rows that nobody wrote, spare bits."""

    def tokenize(texts: Any) -> Any:
        return tokenizer(list(texts))["input_ids"]

    checks = verify_archive(open_archive(path), tokenize if tokenizer is not None else None)
    findings = [finding for check in checks for finding in check.findings]
    return Check(
        f"{name}, archive",
        "sparcom verify",
        len(checks),
        sum(not check.passed for check in checks),
        "checks",
        note=findings[0] if findings else "",
        verb="find something",
    )


def same_values(
    expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]], name: str, compared: str, unit: str
) -> Check:
    """Tokens, or numbers to the last bit, one by one; a list that is shorter differs in what it lacks."""
    total = differing = 0
    for left, right in zip(expected, found, strict=True):
        longer = max(len(left), len(right))
        total += longer
        differing += longer - sum(a == b for a, b in zip(left, right, strict=False))
    return Check(name, compared, total, differing, unit)
