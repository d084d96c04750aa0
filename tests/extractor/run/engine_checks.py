"""Check archives that a real engine wrote: their own rules, another run's rows, transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.verify import verify_archive
from sparcom_verification.limits import DIFFERING_BITS, DIFFERING_BITS_BETWEEN_RANKS, WEIGHT_TOLERANCE
from sparcom_verification.reference.comparison import compare_masks, sample_indices
from sparcom_verification.reference.model import ReferenceModel

ALLOWED_SHARE = DIFFERING_BITS["float32"]
ALLOWED_WEIGHT = WEIGHT_TOLERANCE["float32"]
SETTINGS = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 320}  # long prompts are split


def tokenizer_of(engine: Any) -> Callable[[Any], Any]:
    return lambda texts: engine.engine.tokenizer(list(texts))["input_ids"]


def rows_of(archive: Archive, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return token ids (rows,) and masks, bool (rows, layer, neuron), of one instruction."""
    table = archive.instructions
    start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
    bits = np.unpackbits(archive.read_active(start, stop), axis=-1, bitorder="little")
    return archive.read_tokens(start, stop)[0], bits[..., : archive.neurons].astype(bool)


def assert_same_rows(one: Archive, other: Archive) -> None:
    """Check that token ids are equal and that bits differ only by rounding."""
    differing = total = 0
    for index in range(len(one.instructions)):
        (ids, masks), (other_ids, other_masks) = rows_of(one, index), rows_of(other, index)
        assert np.array_equal(ids, other_ids), one.instructions.id[index]
        differing += int((masks != other_masks).sum())
        total += masks.size
    assert differing <= max(1.0, ALLOWED_SHARE * total), f"{differing} of {total} bits differ"


def assert_right(archive: Archive, engine: Any, model: Path, sample: int) -> None:
    """Check that the archive passes its own checks and agrees with transformers."""
    assert [check.findings for check in verify_archive(archive, tokenizer_of(engine)) if not check.passed] == []
    reference = ReferenceModel(str(model), "float32", archive.attributes.model.layer_ids)
    result = compare_masks(archive, reference, sample_indices(archive, sample), lambda _: np.zeros(0, np.int32))
    assert result.bits > 0
    assert result.differing <= max(1.0, ALLOWED_SHARE * result.bits), f"{result.differing} of {result.bits} bits differ"
    assert result.unexplained == 0


def rows_in_order(archive: Archive) -> dict[str, np.ndarray[Any, Any]]:
    """Return all rows of every array, instruction after instruction."""
    table = archive.instructions
    spans = zip(table.token_start.tolist(), table.token_length.tolist(), strict=True)
    parts = [{item.name: archive.read_rows(item.name, s, s + n) for item in archive.captured} for s, n in spans]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_alike(one: Archive, other: Archive, share: float) -> None:
    """Check for the same tokens and experts, weights equal up to rounding, and at most this fraction of differing
    bits."""
    assert one.read_tokens(0, one.tokens)[0].tolist() == other.read_tokens(0, other.tokens)[0].tolist()
    first, second = rows_in_order(one), rows_in_order(other)
    differing = bits = 0
    for item in one.captured:
        a, b = first[item.name], second[item.name]
        if item.packed:
            differing += int(np.bitwise_count(a ^ b).sum())
            bits += int(np.prod(a.shape[:-1])) * item.neurons
        elif item.spec.dtype == "float32":
            np.testing.assert_allclose(a, b, atol=ALLOWED_WEIGHT)
        else:
            np.testing.assert_array_equal(a, b)
    assert differing <= max(1.0, share * bits), f"{differing} of {bits} bits differ"


def assert_slices_of(two: Archive, one: Archive) -> None:
    """Check that an archive of two ranks equals that of one process, and that each rank wrote its own chunks."""
    assert two.attributes.engine.tensor_parallel_size == 2
    assert [check.findings for check in verify_archive(two, None) if not check.passed] == []
    for item in two.captured:
        parts = item.row[-1] // two.array(item.name).chunks[-1]
        assert parts == (2 if item.neurons else 1), "a rank writes its own chunks"
    assert_alike(one, two, DIFFERING_BITS_BETWEEN_RANKS)
