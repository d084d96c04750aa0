"""Compare archives: the same token ids, the same bits but for rounding, counts that are the masks' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive, open_archive
from sparcom_data.verify import verify_archive
from sparcom_extractor.selftest.results import Check

# The share of bits that may fall on the other side of zero where two right computations round differently. float32:
# measured against transformers on SmolLM2, 0.34 to 0.44 in 10⁶. bfloat16: the limit of `sparcom verify`.
ROUNDING_SHARE = {"float32": 3e-6, "bfloat16": 2e-2}


@dataclass(frozen=True, slots=True)
class _Difference:
    """Of the rows of two archives: token ids and bits compared, and how many differ."""

    ids: int
    ids_differing: int
    bits: int
    bits_differing: int


def same_rows(one: Path, other: Path, name: str, compared: str, share: float) -> Iterator[Check]:
    """Two checks: token ids and lengths are equal, and no more bits differ than rounding explains."""
    found = _difference(open_archive(one), open_archive(other))
    yield Check(f"{name}, token ids", compared, found.ids, found.ids_differing, "token ids")
    yield Check(f"{name}, masks", compared, found.bits, found.bits_differing, "bits", share)


def _difference(one: Archive, other: Archive) -> _Difference:
    ids = wrong_ids = bits = wrong_bits = 0
    for index in range(len(one.instructions)):
        (left_ids, left), (right_ids, right) = rows_of(one, index), rows_of(other, index)
        shared = min(len(left_ids), len(right_ids))
        ids += max(len(left_ids), len(right_ids))
        wrong_ids += int((left_ids[:shared] != right_ids[:shared]).sum()) + abs(len(left_ids) - len(right_ids))
        bits += shared * one.layers * one.neurons
        wrong_bits += int(np.bitwise_count(left[:shared] ^ right[:shared]).sum())
    return _Difference(ids, wrong_ids, bits, wrong_bits)


def rows_of(archive: Archive, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Token ids (rows,) and packed masks (rows, layer, neuron_byte) of one instruction."""
    table = archive.instructions
    start = int(table.token_start[index])
    stop = start + int(table.token_length[index])
    return archive.read_tokens(start, stop)[0], archive.read_active(start, stop)


def same_counts(counted: Path, masks: Path, name: str) -> Check:
    """The counts of one archive are the sums over the masks of the other, exactly."""
    counts, rows = open_archive(counted), open_archive(masks)
    total = differing = 0
    for index in range(len(rows.instructions)):
        bits = np.unpackbits(rows_of(rows, index)[1], axis=-1, count=rows.neurons, bitorder="little")
        expected = bits.sum(axis=0, dtype=np.uint32)
        differing += int((counts.read_counts(index, index + 1)[0] != expected).sum())
        total += expected.size
    return Check(f"{name}, counts", "granularity count against the counted masks", total, differing, "counts")


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
