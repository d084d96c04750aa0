"""Mixtures of experts in a real vLLM engine: routes, combine weights and neurons, whatever the scheduler does.

Every family is compared with transformers; one of them, with a dense layer and shared experts, goes through the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.archive import Archive
from sparcom_data.instructions import Instruction
from sparcom_data.verify import verify_archive
from sparcom_extractor.writer.counting import count_rows
from sparcom_verification.reference.masks import Comparison, ReferenceModel, compare_with_reference

pytestmark = pytest.mark.engine

FAMILIES = {  # dense layers, layers of experts, shared neurons
    "qwen2-moe": ([1], [0, 2], 176),
    "qwen3-moe": ([0, 2], [1], 0),
    "mixtral": ([], [0, 1, 2], 0),
    "olmoe": ([], [0, 1, 2], 0),
    "deepseek-v2": ([0], [1, 2], 224),
    "deepseek-v3": ([0], [1, 2], 112),
    "llama4-text": ([0, 2], [1], 112),
}
SETTINGS = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 320}  # long prompts are cut
MOST_BITS = 3e-6
MOST_WEIGHT = 1e-5
MOST_BITS_OF_RANKS = 1e-5


@pytest.fixture
def engine_of(start_engine: Any, tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    return lambda family, **further: start_engine(tiny_model(family), **SETTINGS, **further)


def compared(archive: Archive, model: Path) -> Comparison:
    """All instructions through transformers. Ties are counted, and with these models there are none to hide behind."""
    found = archive.attributes.model
    reference = ReferenceModel(str(model), "float32", found.layer_ids, found.moe)
    return compare_with_reference(archive, reference, archive.instructions.complete, lambda _: np.zeros(0, np.int32))


def rows_in_order(archive: Archive) -> dict[str, np.ndarray[Any, Any]]:
    """All rows of every array, instruction after instruction."""
    table = archive.instructions
    spans = zip(table.token_start.tolist(), table.token_length.tolist(), strict=True)
    parts = [{item.name: archive.read_rows(item.name, s, s + n) for item in archive.captured} for s, n in spans]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_alike(one: Archive, other: Archive, share: float) -> None:
    """The same tokens and experts, weights that rounding explains, and bits that differ in at most such a share."""
    assert one.read_tokens(0, one.tokens)[0].tolist() == other.read_tokens(0, other.tokens)[0].tolist()
    first, second = rows_in_order(one), rows_in_order(other)
    differing = bits = 0
    for item in one.captured:
        a, b = first[item.name], second[item.name]
        if item.packed:
            differing += int(np.bitwise_count(a ^ b).sum())
            bits += int(np.prod(a.shape[:-1])) * item.neurons
        elif item.spec.dtype == "float32":
            np.testing.assert_allclose(a, b, atol=MOST_WEIGHT)
        else:
            np.testing.assert_array_equal(a, b)
    assert differing <= max(1.0, share * bits), f"{differing} of {bits} bits differ"


def test_concurrent_rows_are_those_of_each_request_alone(
    engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Chunked prefill and mixed batches give every request the routes and neurons that it has alone."""
    engine = engine_of("qwen2-moe")
    together = engine.extract(mixed_instructions, tmp_path / "together.zarr")
    alone = engine.extract_alone(mixed_instructions, tmp_path / "alone.zarr")
    assert_alike(together, alone, MOST_BITS)


def test_rows_of_responses_are_captured_and_no_others(
    engine_of: Any, tiny_model: Callable[[str], Path], mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Generated tokens have routes too; reserved rows that hold no token have no expert."""
    archive = engine_of("qwen2-moe").extract(mixed_instructions, tmp_path / "a.zarr", positions="all", max_tokens=5)
    result = compared(archive, tiny_model("qwen2-moe"))
    assert result.rows == archive.instructions.token_length.sum()
    assert (result.experts.unexplained, result.unexplained) == (0, 0)  # type: ignore[union-attr]
    table = archive.instructions
    for start, length, prompt in zip(table.token_start, table.token_length, table.prompt_length, strict=True):
        experts, weights = archive.read_routes(int(start + length), int(start + prompt) + 5)
        assert (experts == 65_535).all()
        assert np.isnan(weights).all()


def test_counts_are_those_of_the_rows(engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path) -> None:
    """Granularity count gives the sums over each instruction's rows: routes, chosen, shared and dense neurons."""
    engine = engine_of("qwen2-moe")
    masks = engine.extract(mixed_instructions, tmp_path / "masks.zarr")
    counts = engine.extract(mixed_instructions, tmp_path / "counts.zarr", granularity="count")
    assert [check.findings for check in verify_archive(counts, None) if not check.passed] == []
    differing = 0
    for index in range(len(mixed_instructions)):
        start = int(masks.instructions.token_start[index])
        stop = start + int(masks.instructions.token_length[index])
        rows = {item.name: masks.read_rows(item.name, start, stop) for item in masks.captured}
        for item in counts.captured:
            expected = np.zeros(item.row, dtype=np.uint32)
            count_rows(item.name, rows, expected)
            differing += int((counts.read_rows(item.name, index, index + 1)[0] != expected).sum())
    assert differing <= 1, "the rows of two runs may differ in a bit"


@pytest.mark.parametrize("architecture", ["qwen2-moe", "llama"])
def test_two_ranks_write_what_one_writes(
    architecture: str, engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Tensor parallelism over two processes: each writes its slice of the neurons, the first the routes."""
    one = engine_of(architecture).extract(mixed_instructions, tmp_path / "one.zarr")
    two = engine_of(architecture, tensor_parallel_size=2).extract(mixed_instructions, tmp_path / "two.zarr")
    assert two.attributes.engine.tensor_parallel_size == 2
    assert [check.findings for check in verify_archive(two, None) if not check.passed] == []
    for item in two.captured:
        cut = item.row[-1] // two.array(item.name).chunks[-1]
        assert cut == (2 if item.neurons else 1), "a rank writes its own chunks"
    assert_alike(one, two, MOST_BITS_OF_RANKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_transformers(
    family: str,
    engine_of: Any,
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """The experts of every token and layer, their weights, and the neurons of dense, chosen and shared experts."""
    archive = engine_of(family).extract(mixed_instructions, tmp_path / "a.zarr")
    found, (dense, moe, shared) = archive.attributes.model, FAMILIES[family]
    assert found.moe is not None
    assert (found.layer_ids, found.moe.layer_ids, found.moe.shared_neurons) == (dense, moe, shared)
    assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []
    result = compared(archive, tiny_model(family))
    assert result.rows == archive.instructions.prompt_length.sum()
    assert result.differing <= max(1.0, MOST_BITS * result.bits), f"{result.differing} of {result.bits} bits differ"
    assert result.unexplained == 0
    assert result.experts is not None
    assert result.experts.routes == result.rows * len(moe)
    assert (result.experts.unexplained, result.experts.ties) == (0, 0)
    assert result.experts.largest_weight <= MOST_WEIGHT
