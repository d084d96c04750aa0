"""MoE models in a real vLLM engine: routes, weights and neurons, whatever the scheduler does.

Every family is compared with transformers. One of them, with a dense layer and shared experts, runs all other tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_checks import ALLOWED_SHARE, ALLOWED_WEIGHT, SETTINGS, assert_alike, assert_slices_of

from sparcom_data.archive import Archive
from sparcom_data.instructions import Instruction
from sparcom_data.verify import verify_archive
from sparcom_extractor.writer.counting import count_rows
from sparcom_verification.reference.comparison import MaskComparison, compare_masks
from sparcom_verification.reference.model import ReferenceModel

pytestmark = pytest.mark.engine

FAMILIES = {  # dense layers, MoE layers, shared neurons
    "qwen2-moe": ([1], [0, 2], 176),
    "qwen3-moe": ([0, 2], [1], 0),
    "mixtral": ([], [0, 1, 2], 0),
    "olmoe": ([], [0, 1, 2], 0),
    "deepseek-v2": ([0], [1, 2], 224),
    "deepseek-v3": ([0], [1, 2], 112),
    "llama4-text": ([0, 2], [1], 112),
}


@pytest.fixture
def engine_of(start_engine: Any, tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    return lambda family, **further: start_engine(tiny_model(family), **SETTINGS, **further)


def compared(archive: Archive, model: Path) -> MaskComparison:
    """Compare all instructions with transformers. Ties are counted, and these models must have none."""
    found = archive.attributes.model
    reference = ReferenceModel(str(model), "float32", found.layer_ids, found.moe)
    return compare_masks(archive, reference, archive.instructions.complete, lambda _: np.zeros(0, np.int32))


def test_concurrent_rows_are_those_of_each_request_alone(
    engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """With chunked prefill and mixed batches, every request has the routes and neurons that it has alone."""
    engine = engine_of("qwen2-moe")
    together = engine.extract(mixed_instructions, tmp_path / "together.zarr")
    alone = engine.extract_alone(mixed_instructions, tmp_path / "alone.zarr")
    assert_alike(together, alone, ALLOWED_SHARE)


def test_only_rows_of_responses_are_captured(
    engine_of: Any, tiny_model: Callable[[str], Path], mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Generated tokens have routes too; reserved rows without a token have no expert."""
    archive = engine_of("qwen2-moe").extract(mixed_instructions, tmp_path / "a.zarr", positions="all", max_tokens=5)
    result = compared(archive, tiny_model("qwen2-moe"))
    assert result.rows == archive.instructions.token_length.sum()
    assert (result.experts.unexplained, result.unexplained) == (0, 0)  # type: ignore[union-attr]
    table = archive.instructions
    for start, length, prompt in zip(table.token_start, table.token_length, table.prompt_length, strict=True):
        experts, weights = archive.read_routes(int(start + length), int(start + prompt) + 5)
        assert (experts == 65_535).all()
        assert np.isnan(weights).all()


def test_counts_are_sums_of_the_rows(engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path) -> None:
    """Granularity count gives the sums over each instruction's rows: routes, top-k, shared and dense neurons."""
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


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(engine_of: Any, mixed_instructions: list[Instruction], tmp_path: Path) -> None:
    """With tensor parallelism over two workers, each writes its slice of the neurons, and the first the routes."""
    one = engine_of("qwen2-moe").extract(mixed_instructions, tmp_path / "one.zarr")
    two = engine_of("qwen2-moe", tensor_parallel_size=2).extract(mixed_instructions, tmp_path / "two.zarr")
    assert_slices_of(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_transformers(
    family: str,
    engine_of: Any,
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """The experts of every token and layer, their weights, and dense, top-k and shared experts' neurons agree."""
    archive = engine_of(family).extract(mixed_instructions, tmp_path / "a.zarr")
    found, (dense, moe, shared) = archive.attributes.model, FAMILIES[family]
    assert found.moe is not None
    assert (found.layer_ids, found.moe.layer_ids, found.moe.shared_neurons) == (dense, moe, shared)
    assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []
    result = compared(archive, tiny_model(family))
    assert result.rows == archive.instructions.prompt_length.sum()
    assert result.differing <= max(1.0, ALLOWED_SHARE * result.bits), f"{result.differing} of {result.bits} bits differ"
    assert result.unexplained == 0
    assert result.experts is not None
    assert result.experts.routes == result.rows * len(moe)
    assert (result.experts.unexplained, result.experts.ties) == (0, 0)
    assert result.experts.largest_weight_error <= ALLOWED_WEIGHT
