"""What the SPARCOM paper found about categories of natural instructions holds for what is captured here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_analysis import category_similarity, instruction_specific_neurons
from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_hexainst.categories import CATEGORIES

NATURAL = "SPARCOM_NATURAL"  # a folder of cls.jsonl, code.jsonl, …; not distributed with the project
PER_CATEGORY = 50


@pytest.fixture
def natural() -> list[Instruction]:
    """The first 50 natural instructions of each category, where the environment says that they are at hand."""
    folder = os.environ.get(NATURAL)
    if not folder:
        pytest.skip(f"no natural instructions are at hand: {NATURAL} names a folder with them")
    files = [Path(folder) / f"{name.lower()}.jsonl" for name in CATEGORIES]
    return [item for file in files for item in read_jsonl(file)[:PER_CATEGORY]]


def test_categories_resemble_themselves_most_and_cls_resembles_sum(
    start_engine: Callable[..., Any], demo_model: Path, natural: list[Instruction], tmp_path: Path
) -> None:
    """In equation 10 at ε = 0.05 each row's largest value is on the diagonal; outside it CLS and SUM are most alike."""
    engine = start_engine(demo_model, max_model_len=1024)
    archive = engine.extract(natural, tmp_path / "natural.zarr")
    found = category_similarity(instruction_specific_neurons(archive, epsilon=0.05))
    assert (found.matrix.argmax(axis=1) == np.arange(len(CATEGORIES))).all()
    apart = np.where(np.eye(len(CATEGORIES), dtype=bool), 0.0, found.matrix)
    pair = np.unravel_index(apart.argmax(), apart.shape)
    assert {found.categories[place] for place in pair} == {"CLS", "SUM"}
