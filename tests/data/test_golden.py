"""An archive of format version 1, committed once, is read for ever: by us, by plain zarr and by xarray.

The constants were taken from the files when they were made (make_golden.py); nothing here is computed by our code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import xarray
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.schema import INSTRUCTION_ARRAYS, NEURON_ACTIVE, TOKEN_ARRAYS
from sparcom_data.verify import verify_archive

GOLDEN = Path(__file__).parent / "golden" / "v1.zarr"

TEXTS = ["plain", "Grüße aus Köln", "日本語の指示", "🧠 → 🔬", "two\nlines\tand a \0", "e\u0301 is not é"]
RESPONSES = ["", "", "", "はい", "", ""]
STARTS = [0, 7, 12, 21, 32, 32]
PROMPTS = [7, 5, 9, 11, 3, 8]
LENGTHS = [7, 5, 9, 11, 0, 8]
STATES = [1, 1, 1, 1, 2, 1]
FIRST_IDS = [632, 368, 128, 511, 341, 444, 819]
LAST_IDS = [807, 230, 833, 76, 904, 90, 807, 526]
ROW_7 = ["10001100000", "10000011000"]  # neuron 0 first
MASKS_SHA256 = "778082e5aff573cad99f114da85f82b8213771c7d97133df4f9dca87b2f2b2a2"  # one byte a neuron, 0 or 1


def check_masks(packed: np.ndarray) -> None:
    """Packed masks are the golden ones."""
    masks = np.unpackbits(packed, axis=-1, bitorder="little", count=11)
    assert masks.shape == (40, 2, 11)
    assert ["".join(map(str, layer)) for layer in masks[7].tolist()] == ROW_7
    assert hashlib.sha256(masks.tobytes()).hexdigest() == MASKS_SHA256


def test_our_reader() -> None:
    """Columns, rows, masks and attributes through sparcom_data."""
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
    """`verify` finds nothing wrong with it."""
    assert [check.findings for check in verify_archive(open_archive(GOLDEN), None)] == [[]] * 4


def test_plain_zarr() -> None:
    """The same through zarr-python, which knows nothing of SPARCOM; no array of today's schema is absent."""
    group = zarr.open_group(GOLDEN, mode="r")
    for spec in (*INSTRUCTION_ARRAYS, *TOKEN_ARRAYS, NEURON_ACTIVE):
        assert spec.name in group, "version 1 has had this array since its first release; a new one is a new version"
    assert list(group["instruction/text"][:]) == TEXTS
    assert group["instruction/token_start"][:].tolist() == STARTS
    assert group["instruction/token_length"][:].tolist() == LENGTHS
    assert group["token/id"][:7].tolist() == FIRST_IDS
    check_masks(group["neuron/active"][:])


def test_xarray() -> None:
    """The same through xarray, by dimension names."""
    with xarray.open_datatree(GOLDEN, engine="zarr") as data:
        assert list(data["instruction/response"].values) == RESPONSES
        assert data["instruction/state"].values.tolist() == STATES
        assert data["token/id"].isel(token=slice(-8, None)).values.tolist() == LAST_IDS
        assert data["neuron/active"].dims == ("token", "layer", "neuron_byte")
        check_masks(data["neuron/active"].values)
