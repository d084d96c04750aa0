"""Every check finds its own kind of damage, and valid archives have no findings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.testing import random_attributes, write_random_archive
from sparcom_data.verify import Check, verify_archive

Put = Callable[..., None]
Damage = Callable[[Path, Put], None]
ALL_CHECKS = ["format", "states", "rows", "token ids", "masks"]


def tokenizer_of(path: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    """Tokenize the archive's texts: `text k` gives the stored tokens of instruction k."""
    group = zarr.open_group(path, mode="r")
    ids, starts = group["token/id"][:], group["instruction/token_start"][:]
    lengths = group["instruction/prompt_length"][:]
    known = {f"text {k}": ids[start : start + lengths[k]].tolist() for k, start in enumerate(starts)}
    return lambda texts: [known[text] for text in texts]


def findings(checks: Sequence[Check]) -> dict[str, list[str]]:
    """Return the findings of each failed check."""
    return {check.name: check.findings for check in checks if not check.passed}


def rewrite_metadata(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of an array (or of the root, ""), in its own file and in the consolidated copy."""
    root = path / "zarr.json"
    whole = json.loads(root.read_text())
    if name:
        own = json.loads((path / name / "zarr.json").read_text())
        change(own)
        (path / name / "zarr.json").write_text(json.dumps(own))
        whole["consolidated_metadata"]["metadata"][name] = own
    else:
        change(whole)
    root.write_text(json.dumps(whole))


def flip(name: str) -> Damage:
    """Flip one bit of a file."""

    def damage(path: Path, put: Put) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 3] ^= 4
        (path / name).write_bytes(content)

    return damage


def remove(name: str) -> Damage:
    """Remove one file."""
    return lambda path, _: (path / name).unlink()


def change(name: str, index: int, value: object) -> Damage:
    """Write another value in a valid chunk: only its meaning is wrong."""
    return lambda path, put: put(path, name, index, value)


def metadata(name: str, **fields: object) -> Damage:
    """Change fields of an array's metadata."""
    return lambda path, _: rewrite_metadata(path, name, lambda own: own.update(fields))


def size_of_neurons(path: Path, put: Put) -> None:
    rewrite_metadata(path, "neuron/active", lambda own: own["attributes"].update(size=24))


def spare_bit(path: Path, put: Put) -> None:
    row = zarr.open_array(path / "neuron/active", mode="r")[30]
    row[1, 2] |= 1 << 4  # neuron 20 of 20
    put(path, "neuron/active", 30, row)


def shared_rows(path: Path, put: Put) -> None:
    starts = zarr.open_array(path / "instruction/token_start", mode="r")[:]
    put(path, "instruction/token_start", 6, int(starts[5]) + 1)


def no_array(path: Path, put: Put) -> None:
    shutil.rmtree(path / "token/position")
    rewrite_metadata(path, "", lambda root: root.pop("consolidated_metadata"))


def short_positions(path: Path, put: Put) -> None:
    array = zarr.open_array(path / "token/position", mode="r")
    rewrite_metadata(path, "token/position", lambda own: own.update(shape=[array.shape[0] - 1]))


# Damage, the check that must find it, and what it must say.
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "bit flipped in masks": (flip("neuron/active/c.2.0.0"), "masks", "chunk c.2.0.0 of array neuron/active"),
    "chunk of masks missing": (
        remove("neuron/active/c.4.0.0"),
        "masks",
        "chunk c.4.0.0 of array neuron/active .* It holds data of the instructions 'i00",
    ),
    "spare bit set": (
        spare_bit,
        "masks",
        r"spare bits past neuron 19 must be 0; 1 masks .* 'i00\d', token \d+ \(id \d+\), layer 1",
    ),
    "bit flipped in token ids": (flip("token/id/c/0"), "rows", "chunk c/0 of array token/id"),
    "positions missing": (remove("token/position/c/0"), "rows", "chunk c/0 of array token/position"),
    "row never written": (change("token/id", 11, -1), "rows", "1 of its .* rows were never written"),
    "wrong position": (change("token/position", 11, 77), "rows", "positions must be consecutive from 0"),
    "row missing": (change("instruction/token_length", 9, 2), "rows", "2 rows cannot hold its .* prompt tokens"),
    "wrong token id": (
        change("token/id", 11, 1001),
        "token ids",
        r"not the tokenization of its text; token \d+ is 1001, and ",
    ),
    "rows shared": (shared_rows, "states", "'i005' and 'i006' share rows"),
    "rows past the axis": (
        change("instruction/token_start", 9, 60),
        "states",
        "'i009': its rows end past the token axis",
    ),
    "rows before the axis": (change("instruction/token_start", 0, -2), "states", "'i000': its rows end past"),
    "length past the axis": (change("instruction/token_length", 9, 10**6), "states", "'i009': its rows end past"),
    "pending though complete": (change("instruction/state", 5, 0), "states", "no pending instruction; this one has 1"),
    "failed without reason": (change("instruction/error", 3, ""), "states", "'i003' failed without a reason"),
    "ids repeated": (change("instruction/id", 1, "i000"), "states", "ids must be unique"),
    "unknown state": (change("instruction/state", 1, 7), "states", r"must be 0 to 3; found \[7\]"),
    "bit flipped in text": (flip("instruction/text/c/0"), "format", "chunk c/0 of array instruction/text"),
    "responses missing": (remove("instruction/response/c/0"), "format", "chunk c/0 of array instruction/response"),
    "state missing": (remove("instruction/state/c/0"), "format", "chunk c/0 of array instruction/state"),
    "array missing": (no_array, "format", "lacks the array token/position"),
    "wrong dtype": (metadata("token/id", data_type="uint32", fill_value=0), "format", "dtype int32; it has uint32"),
    "wrong dimensions": (
        metadata("neuron/active", dimension_names=["token", "neuron_byte", "layer"]),
        "format",
        "dimensions",
    ),
    "no dimensions": (metadata("token/id", dimension_names=None), "format", "token/id must have dimensions"),
    "wrong shape of masks": (metadata("neuron/active", shape=[60, 3, 3]), "format", "must have shape .*it has"),
    "wrong size of neurons": (size_of_neurons, "format", "must carry size 20; it carries 24"),
    "column too short": (metadata("instruction/source", shape=[9]), "format", "source must have 10 entries; it has 9"),
    "positions too short": (short_positions, "format", "token/position must have"),
}


def test_a_valid_archive_passes_every_check(sample: Any) -> None:
    """A valid archive has no findings, every check states its scope, and progress ends at 1."""
    progress: list[float] = []
    checks = verify_archive(open_archive(sample.path), tokenizer_of(sample.path), progress.append)
    assert findings(checks) == {}
    assert [check.name for check in checks] == ALL_CHECKS
    assert all(check.looked_at for check in checks)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert [check.name for check in verify_archive(open_archive(sample.path), None)] == [
        name for name in ALL_CHECKS if name != "token ids"
    ]


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_found(sample: Any, put: Put, case: str) -> None:
    """The check for this damage names it, and no check crashes on it."""
    damage, name, message = DAMAGES[case]
    tokenize = tokenizer_of(sample.path)
    damage(sample.path, put)
    found = findings(verify_archive(open_archive(sample.path), tokenize))
    assert name in found
    assert any(re.search(message, text) for text in found[name]), found


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [("token/id", 11, 1001), ("token/id", 11, -1), ("instruction/error", 3, ""), ("instruction/id", 1, "i000")],
)
def test_damage_in_one_place_is_not_blamed_on_another(sample: Any, put: Put, name: str, index: int, value: Any) -> None:
    """One wrong value gives one finding, which names its instruction."""
    tokenize = tokenizer_of(sample.path)
    starts = zarr.open_array(sample.path / "instruction/token_start", mode="r")[:]
    put(sample.path, name, index, value)
    found = findings(verify_archive(open_archive(sample.path), tokenize))
    owner = f"'i{np.searchsorted(starts, index, side='right') - 1:03d}'"
    texts = [text for check in found.values() for text in check]
    assert len(texts) == (2 if value == -1 else 1)
    if name == "token/id":
        assert all(owner in text for text in texts)


def test_pending_instructions_are_not_damage(tmp_path: Path, columns: Any) -> None:
    """An open archive may have pending instructions without rows on disk."""
    layout = plan_layout([3, 4], "prompt", 0)
    create_archive(tmp_path / "a.zarr", random_attributes(2, 8), columns(2), layout)
    assert findings(verify_archive(open_archive(tmp_path / "a.zarr"), lambda _: [])) == {}


def test_responses_start_at_the_end_of_the_prompt(tmp_path: Path, columns: Any, put: Put) -> None:
    """If only responses are captured, the first row's position must be the prompt's length."""
    path = tmp_path / "a.zarr"
    layout = plan_layout([3, 4], "response", 2)
    create_archive(path, random_attributes(2, 8, positions="response", max_tokens=2), columns(2), layout)
    put(path, "neuron/active", slice(None), 0)
    ids = np.array([5, 6], dtype=np.int32)
    committer = ArchiveCommitter(path)
    committer.complete([CompletedInstruction(k, 2 * k, ids, ids - 5 + layout.first_position[k]) for k in (0, 1)])
    committer.close()
    assert findings(verify_archive(open_archive(path), lambda _: pytest.fail("no prompt row to compare"))) == {}
    put(path, "token/position", slice(0, 2), [0, 1])
    assert findings(verify_archive(open_archive(path), None)) == {
        "rows": ["instruction 'i0': positions must be consecutive from 3; that of token 3 is 0"]
    }


@settings(max_examples=10, deadline=None)
@given(
    neurons=st.integers(1, 40),
    layers=st.integers(1, 4),
    chunk=st.integers(1, 20),
    each=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_the_test_factory_returns_the_truth(
    tmp_path_factory: pytest.TempPathFactory, neurons: int, layers: int, chunk: int, each: int, seed: int
) -> None:
    """write_random_archive writes valid archives of any size that hold the returned values."""
    path = tmp_path_factory.mktemp("factory") / "a.zarr"
    truth = write_random_archive(
        path,
        categories=("A", "B", ""),
        per_category=each,
        layers=layers,
        neurons=neurons,
        seed=seed,
        chunk_tokens=chunk,
    )
    archive = open_archive(path)
    assert findings(verify_archive(archive, tokenizer_of(path))) == {}
    packed = zarr.open_array(path / "neuron/active", mode="r")[:]
    bits = (packed[..., np.arange(neurons) // 8] >> (np.arange(neurons) % 8)) & 1
    np.testing.assert_array_equal(bits.astype(bool), truth)
    np.testing.assert_array_equal(archive.read_active(0, archive.tokens), packed)
    assert archive.instructions.category == ["A"] * each + ["B"] * each + [""] * each


@pytest.mark.parametrize("lengths", [(10, 65_000, 65_000, 600, 70_000), (5, 65_531, 65_536)])
def test_chunks_without_complete_rows_may_be_missing(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """If the last instruction of a large archive was cancelled, only token chunks of the others must exist."""
    path = tmp_path / "a.zarr"
    ran = range(len(lengths) - 1)
    layout = plan_layout(lengths, "prompt", 0)
    blank = [""] * len(lengths)
    columns = InstructionColumns([str(index) for index in range(len(lengths))], blank, blank, blank, blank)
    create_archive(path, random_attributes(1, 8), columns, layout)
    masks = zarr.open_array(path, path="neuron/active", mode="r+").with_config({"write_empty_chunks": True})
    masks[: sum(lengths[:-1])] = 1
    committer = ArchiveCommitter(path)
    positions = [np.arange(length, dtype=np.int32) for length in lengths]
    committer.complete([CompletedInstruction(k, int(layout.token_start[k]), positions[k], positions[k]) for k in ran])
    committer.cancel([len(lengths) - 1])
    committer.close()
    assert findings(verify_archive(open_archive(path), None)) == {}


def test_a_response_without_rows_is_not_damage(tmp_path: Path) -> None:
    """A response of one token is complete without a row, and needs no token chunk."""
    path = tmp_path / "a.zarr"
    blank = [""] * 2
    columns = InstructionColumns(["a", "b"], blank, blank, blank, blank)
    attributes = random_attributes(1, 8, positions="response", max_tokens=1)
    create_archive(path, attributes, columns, plan_layout([3, 3], "response", 1))
    committer = ArchiveCommitter(path)
    nothing = np.zeros(0, dtype=np.int32)
    committer.cancel([0])
    committer.complete([CompletedInstruction(1, 1, nothing, nothing, "x")])
    committer.close()
    assert findings(verify_archive(open_archive(path), None)) == {}
