"""Dense model families and the demo model in a real vLLM engine; LLaMA is in test_capture_engine.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_checks import SETTINGS, assert_right, assert_same_rows

from sparcom_analysis import find_isns, similarity
from sparcom_data.errors import UnsupportedModelError
from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_hexainst.categories import CATEGORIES

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NATURAL = "SPARCOM_NATURAL"  # a folder of cls.jsonl, code.jsonl, …; not distributed with the project
PER_CATEGORY = 50


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gemma", "olmo2", "smollm3"])
def test_masks_agree_with_transformers(
    architecture: str,
    start_engine: Callable[..., Any],
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """Every family's bits are the signs of the gate in transformers. Gemma shares one activation module. vLLM runs
    OLMo-2 and SmolLM3 through its Transformers backend, with a batch dimension."""
    model = tiny_model(architecture)
    engine = start_engine(model, **SETTINGS)
    archive = engine.extract(mixed_instructions, tmp_path / "a.zarr")
    assert_right(archive, engine, model, sample=24)


def test_natural_prompts_on_the_demo_model_agree_with_transformers(
    start_engine: Callable[..., Any], demo_model: Path, demo_instructions: list[Instruction], tmp_path: Path
) -> None:
    """On a real model, prompts of mixed lengths, split into steps of 64 tokens with 8 at once, are right and equal
    single runs."""
    folder = os.environ.get(NATURAL)
    texts = (
        [read_jsonl(file)[7] for file in sorted(Path(folder).glob("*.jsonl"))] if folder else demo_instructions[::20]
    )
    instructions = [item.model_copy(update={"id": f"n{number}"}) for number, item in enumerate(texts)]
    engine = start_engine(demo_model, max_num_batched_tokens=64, max_num_seqs=8, max_model_len=1024)
    together = engine.extract(instructions, tmp_path / "a.zarr")
    assert_right(together, engine, demo_model, sample=6)
    assert_same_rows(together, engine.extract_alone(instructions, tmp_path / "b.zarr"))


@pytest.mark.parametrize("architecture", ["opt"])
def test_a_model_without_a_gate_is_refused_at_start(
    architecture: str, start_engine: Callable[..., Any], tiny_model: Callable[[str], Path]
) -> None:
    """A model whose FFN has no gate is refused with the reason, and its engine is stopped."""
    with pytest.raises(UnsupportedModelError, match="has none in layers 0, 1"):
        start_engine(tiny_model(architecture), max_model_len=320)


@pytest.fixture
def natural() -> list[Instruction]:
    """Return the first 50 natural instructions per category, from the folder in the environment variable."""
    folder = os.environ.get(NATURAL)
    if not folder:
        pytest.skip(f"no natural instructions are at hand: {NATURAL} names a folder with them")
    files = [Path(folder) / f"{name.lower()}.jsonl" for name in CATEGORIES]
    return [item for file in files for item in read_jsonl(file)[:PER_CATEGORY]]


def test_categories_resemble_themselves_most_and_cls_resembles_sum(
    start_engine: Callable[..., Any], demo_model: Path, natural: list[Instruction], tmp_path: Path
) -> None:
    """In equation 10 (top 5 %), each row's largest value is on the diagonal; off it, CLS and SUM are most similar."""
    engine = start_engine(demo_model, max_model_len=1024)
    archive = engine.extract(natural, tmp_path / "natural.zarr")
    ds = similarity(find_isns(archive, top=0.05), n_resamples=0, n_permutations=0).sel(self_pairs=True)
    matrix = ds["value"].values
    assert (matrix.argmax(axis=1) == np.arange(len(CATEGORIES))).all()
    apart = np.where(np.eye(len(CATEGORIES), dtype=bool), 0.0, matrix)
    pair = np.unravel_index(apart.argmax(), apart.shape)
    assert {str(ds["category"].values[index]) for index in pair} == {"CLS", "SUM"}
