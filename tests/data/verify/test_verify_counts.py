"""`verify` of archives of counts: every check finds its own kind of damage, and valid archives have no findings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import Positions
from sparcom_data.testing import random_attributes, write_random_archive
from sparcom_data.verify import Check, verify_archive
from sparcom_data.verify import values as verify_values

Put = Callable[..., None]
Damage = Callable[[Path, Put], None]


def tokenizer_of(path: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    """Tokenize texts to sequences of the right length; the ids are arbitrary."""
    lengths = zarr.open_array(path / "instruction/prompt_length", mode="r")[:]
    known = {f"text {k}": [0] * int(length) for k, length in enumerate(lengths)}
    return lambda texts: [known[text] for text in texts]


def findings(checks: Sequence[Check]) -> dict[str, list[str]]:
    """Return the findings of each failed check."""
    return {check.name: check.findings for check in checks if not check.passed}


def change(name: str, index: int, value: object) -> Damage:
    """Write another value in a valid chunk: only its meaning is wrong."""
    return lambda path, put: put(path, name, index, value)


def flip(path: Path, put: Put) -> None:
    file = path / "neuron/count/c.1.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def metadata(**fields: object) -> Damage:
    """Change fields of the counts' metadata, in its own file and in the consolidated copy."""

    def damage(path: Path, put: Put) -> None:
        own = json.loads((path / "neuron/count/zarr.json").read_text()) | fields
        (path / "neuron/count/zarr.json").write_text(json.dumps(own))
        root = json.loads((path / "zarr.json").read_text())
        root["consolidated_metadata"]["metadata"]["neuron/count"] = own
        (path / "zarr.json").write_text(json.dumps(root))

    return damage


def too_many(path: Path, put: Put) -> None:
    counts = zarr.open_array(path / "neuron/count", mode="r")[5]
    counts[1, 7] = 13
    put(path, "neuron/count", 5, counts)


def no_counts(path: Path, put: Put) -> None:
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"]["neuron/count"]
    (path / "zarr.json").write_text(json.dumps(root))


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "bit flipped": (flip, "counts", "chunk c.1.0.0 of array neuron/count"),
    "chunk missing": (
        lambda path, _: (path / "neuron/count/c.2.0.0").unlink(),
        "counts",
        "chunk c.2.0.0 of array neuron/count",
    ),
    "count above the rows": (
        too_many,
        "counts",
        "'i005', neuron/count, layer 1, neuron 7: a count of 13 exceeds its .* rows",
    ),
    "rows missing": (change("instruction/token_length", 9, 2), "rows", "'i009': 2 rows cannot hold its"),
    "rows invented": (change("instruction/token_length", 9, 10**6), "rows", "'i009': 1000000 rows cannot hold its"),
    "another text": (change("instruction/text", 2, "text 6"), "lengths", "'i002': its prompt has .* and its text"),
    "rows before the axis": (change("instruction/token_start", 0, -2), "states", "'i000': its rows end past"),
    "rows shared": (change("instruction/token_start", 6, 1), "states", "share rows"),
    "pending though complete": (change("instruction/state", 5, 0), "states", "this one has 1"),
    "array missing": (no_counts, "format", "lacks the array neuron/count"),
    "wrong dtype": (metadata(data_type="int32"), "format", "dtype uint32; it has int32"),
    "wrong dimensions": (metadata(dimension_names=["token", "layer", "neuron"]), "format", "must have dimensions"),
    "wrong shape": (metadata(shape=[10, 3, 19]), "format", r"must have shape \(10, 3, 20\); it has \(10, 3, 19\)"),
}


def test_a_valid_archive_passes_every_check(counted: Any) -> None:
    """A valid archive has no findings, every check states its scope, and progress ends at 1."""
    progress: list[float] = []
    checks = verify_archive(open_archive(counted.path), tokenizer_of(counted.path), progress.append)
    assert findings(checks) == {}
    assert [check.name for check in checks] == ["format", "states", "rows", "lengths", "counts"]
    assert all(check.looked_at for check in checks)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    names = [check.name for check in verify_archive(open_archive(counted.path), None)]
    assert names == ["format", "states", "rows", "counts"]


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_found(counted: Any, put: Put, case: str) -> None:
    """The check for this damage names it, and no check crashes on it."""
    damage, name, message = DAMAGES[case]
    tokenize = tokenizer_of(counted.path)
    damage(counted.path, put)
    found = findings(verify_archive(open_archive(counted.path), tokenize))
    assert name in found
    assert any(re.search(message, text) for text in found[name]), found


def test_incomplete_instructions_are_not_checked(counted: Any, put: Put) -> None:
    """Counts of a failed instruction are ignored; others in the same chunk are still checked."""
    put(counted.path, "neuron/count", 3, np.full((3, 20), 99))
    assert findings(verify_archive(open_archive(counted.path), None)) == {}
    put(counted.path, "neuron/count", 2, np.full((3, 20), 99))
    assert list(findings(verify_archive(open_archive(counted.path), None))) == ["counts"]


def test_findings_do_not_depend_on_the_block_size(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one chunk and of all chunks give the same findings and check the same number of bytes."""
    write_random_archive(tmp_path / "a.zarr", per_category=9, chunk_instructions=2, granularity="count", failed=(4, 5))
    (tmp_path / "a.zarr/neuron/count/c.2.0.0").unlink()
    put(tmp_path / "a.zarr", "neuron/count", 11, np.full((3, 20), 99))
    results = []
    for size in (1, 3000, verify_values.BLOCK_BYTES):
        monkeypatch.setattr(verify_values, "BLOCK_BYTES", size)
        (check,) = [c for c in verify_archive(open_archive(tmp_path / "a.zarr"), None) if c.name == "counts"]
        results.append((check.findings, check.looked_at))
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 1, "the missing chunk holds only failed instructions"


@pytest.mark.parametrize(
    ("positions", "most", "rows", "message"),
    [
        ("all", 2, 5, ""),
        ("all", 2, 3, ""),
        ("all", 2, 2, "cannot hold its 3 prompt tokens"),
        ("all", 2, 6, "6 rows are more than the 5 reserved"),
        ("response", 2, 0, ""),
        ("response", 2, 3, "3 rows are more than the 2 reserved"),
        ("prompt", 0, 4, "cannot hold its 3 prompt tokens"),
    ],
)
def test_lengths_must_fit_the_captured_positions(
    tmp_path: Path, positions: Positions, most: int, rows: int, message: str
) -> None:
    """Prompts are counted whole, responses up to their reserved length; a response without rows has counts of 0."""
    columns = InstructionColumns(["a"], [""], [""], [""], [""])
    attributes = random_attributes(1, 8, positions=positions, max_tokens=most, granularity="count")
    create_archive(tmp_path / "a.zarr", attributes, columns, plan_layout([3], positions, most))
    array = zarr.open_array(tmp_path / "a.zarr/neuron/count", mode="r+").with_config({"write_empty_chunks": True})
    array[:] = 0
    values = np.zeros(rows, dtype=np.int32)
    ArchiveCommitter(tmp_path / "a.zarr").complete([CompletedInstruction(0, 0, values, values)])
    found = findings(verify_archive(open_archive(tmp_path / "a.zarr"), None))
    assert message in found["rows"][0] if message else found == {}
    array[0, 0, 3] = rows + 1
    assert "counts" in findings(verify_archive(open_archive(tmp_path / "a.zarr"), None))
