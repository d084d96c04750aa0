"""Committed archives of format version 1, masks and counts, stay readable by us, plain zarr and xarray.

The constants were taken from the files when they were made (make_golden.py); nothing here is computed by our code.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import xarray
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.schema import NEURON_COUNT, array_specs
from sparcom_data.verify import verify_archive

GOLDEN = Path(__file__).parents[1] / "golden" / "v1.zarr"
COUNTS = Path(__file__).parents[1] / "golden" / "v1-count.zarr"  # of the same rows

TEXTS = ["plain", "Grüße aus Köln", "日本語の指示", "🧠 → 🔬", "two\nlines\tand a \0", "e\u0301 is not é"]
RESPONSES = ["", "", "", "はい", "", ""]
STARTS = [0, 7, 12, 21, 32, 32]
PROMPTS = [7, 5, 9, 11, 3, 8]
LENGTHS = [7, 5, 9, 11, 0, 8]
STATES = [1, 1, 1, 1, 2, 1]
FIRST_IDS = [632, 368, 128, 511, 341, 444, 819]
LAST_IDS = [807, 230, 833, 76, 904, 90, 807, 526]
ROW_7 = ["10001100000", "10000011000"]  # neuron 0 first
MASKS_SHA256 = "778082e5aff573cad99f114da85f82b8213771c7d97133df4f9dca87b2f2b2a2"  # one byte per neuron, 0 or 1
COUNTS_0 = [[3, 3, 3, 2, 4, 3, 2, 4, 1, 2, 3], [4, 3, 3, 0, 4, 5, 2, 3, 0, 4, 3]]  # of instruction 0
COUNTS_SHA256 = "67308581d2d195c5695b5c10852a3ec3e7785cdb0d7fa2e193c25cb567a97e71"  # four bytes per count, lowest first


def check_masks(packed: np.ndarray) -> None:
    """Assert that packed masks are the golden ones."""
    masks = np.unpackbits(packed, axis=-1, bitorder="little", count=11)
    assert masks.shape == (40, 2, 11)
    assert ["".join(map(str, layer)) for layer in masks[7].tolist()] == ROW_7
    assert hashlib.sha256(masks.tobytes()).hexdigest() == MASKS_SHA256


def test_our_reader() -> None:
    """sparcom_data reads the golden columns, rows, masks and attributes."""
    archive = open_archive(GOLDEN)
    table = archive.instructions
    assert table.id == [f"i00{k}" for k in range(6)]
    assert table.category == ["CLS"] * 3 + ["CODE"] * 3
    assert archive.strings("text") == TEXTS
    assert archive.strings("response") == RESPONSES
    assert archive.strings("error") == ["", "", "", "", "failed on purpose", ""]
    assert table.token_start.tolist() == STARTS
    assert table.prompt_length.tolist() == PROMPTS
    assert table.token_length.tolist() == LENGTHS
    assert table.state.tolist() == STATES
    ids, positions = archive.read_tokens(0, archive.tokens)
    assert (ids[:7].tolist(), ids[-8:].tolist()) == (FIRST_IDS, LAST_IDS)
    assert positions.tolist() == [place for length in LENGTHS for place in range(length)]
    check_masks(archive.read_active(0, archive.tokens))
    assert (archive.layers, archive.neurons, archive.chunk_tokens) == (2, 11, 8)
    assert (archive.attributes.state, archive.attributes.capture.predicate) == ("complete", "gate > 0")


def test_our_checks() -> None:
    """`verify` finds no fault in the golden archive."""
    assert [check.findings for check in verify_archive(open_archive(GOLDEN), None)] == [[]] * 4


def test_plain_zarr() -> None:
    """Plain zarr-python reads the same; the archive has every array of today's schema."""
    group = zarr.open_group(GOLDEN, mode="r")
    for spec in array_specs(open_archive(GOLDEN).attributes.model, "token"):
        assert spec.name in group, "format version 1 has a fixed set of arrays; a new array needs a new version"
    assert list(group["instruction/text"][:]) == TEXTS
    assert group["instruction/token_start"][:].tolist() == STARTS
    assert group["instruction/token_length"][:].tolist() == LENGTHS
    assert group["token/id"][:7].tolist() == FIRST_IDS
    check_masks(group["neuron/active"][:])


def test_xarray() -> None:
    """xarray reads the same, by dimension names."""
    with xarray.open_datatree(GOLDEN, engine="zarr") as data:
        assert list(data["instruction/response"].values) == RESPONSES
        assert data["instruction/state"].values.tolist() == STATES
        assert data["token/id"].isel(token=slice(-8, None)).values.tolist() == LAST_IDS
        assert data["neuron/active"].dims == ("token", "layer", "neuron_byte")
        check_masks(data["neuron/active"].values)


def check_counts(counts: np.ndarray) -> None:
    """Assert that counts are the golden ones."""
    assert counts.shape == (6, 2, 11)
    assert counts[0].tolist() == COUNTS_0
    assert not counts[4].any(), "instruction 4 failed"
    assert hashlib.sha256(counts.astype("<u4").tobytes()).hexdigest() == COUNTS_SHA256


def test_our_reader_of_counts() -> None:
    """sparcom_data reads the golden archive of counts, and `verify` finds no fault in it."""
    archive = open_archive(COUNTS)
    table = archive.instructions
    assert archive.granularity == "count"
    assert archive.strings("text") == TEXTS
    assert archive.strings("response") == RESPONSES
    assert table.token_start.tolist() == STARTS
    assert table.prompt_length.tolist() == PROMPTS
    assert table.token_length.tolist() == LENGTHS
    assert table.state.tolist() == STATES
    check_counts(archive.read_counts(0, 6))
    assert (archive.layers, archive.neurons, archive.chunk_instructions) == (2, 11, 4)
    assert [check.findings for check in verify_archive(archive, None)] == [[]] * 4


def test_plain_zarr_and_xarray_read_counts() -> None:
    """Plain zarr and xarray read the same; the archive has every array of today's schema."""
    group = zarr.open_group(COUNTS, mode="r")
    for spec in array_specs(open_archive(COUNTS).attributes.model, "count"):
        assert spec.name in group, "format version 1 has a fixed set of count arrays"
    check_counts(np.asarray(group["neuron/count"][:]))
    with xarray.open_datatree(COUNTS, engine="zarr") as data:
        assert data["neuron/count"].dims == ("instruction", "layer", "neuron")
        assert data["instruction/state"].values.tolist() == STATES
        check_counts(data["neuron/count"].values)


def test_the_golden_counts_are_those_of_the_golden_masks() -> None:
    """The golden masks, summed over each complete instruction's rows, equal the golden counts."""
    masks = zarr.open_group(GOLDEN, mode="r")["neuron/active"][:]
    bits = np.unpackbits(np.asarray(masks), axis=-1, bitorder="little", count=11)
    counts = np.asarray(zarr.open_group(COUNTS, mode="r")["neuron/count"][:])
    for index, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        np.testing.assert_array_equal(counts[index], bits[start : start + length].sum(axis=0))


def test_documented_python_for_counts_runs() -> None:
    """The snippets for counts in docs/archive-format.md run unchanged on the golden archive."""
    text = (Path(__file__).parents[3] / "docs" / "archive-format.md").read_text(encoding="utf-8")
    snippets = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "COUNTS.zarr" in code]
    assert snippets
    for code in snippets:
        exec(compile(code.replace("COUNTS.zarr", str(COUNTS)), "docs/archive-format.md", "exec"), {})  # noqa: S102


def test_the_array_of_counts_is_documented() -> None:
    """docs/archive-format.md lists the array with dtype and dimensions."""
    text = (Path(__file__).parents[3] / "docs" / "archive-format.md").read_text(encoding="utf-8")
    assert f"| `neuron/count` | {NEURON_COUNT.dtype} | {', '.join(NEURON_COUNT.dimensions)} |" in text
