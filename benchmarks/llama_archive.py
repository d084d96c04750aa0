"""An archive of LLaMA-2-7B's shape: 1,200 instructions of six categories, 57 tokens each on average, 3 GB of masks.

Made so that sets overlap as real ones do: a neuron has a frequency of its own in every category, most of it shared by
all, and every instruction likes some neurons more. Rows are drawn from a few hundred of each category and thinned at
random, which is as fast as the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.testing import random_attributes

COUNT = 1200
LAYERS, NEURONS = 32, 11_008
TOKENS = (40, 74)
CATEGORIES = ("CLS", "CODE", "QA", "GEN", "MATH", "SUM")
DRAWN_ROWS = 128  # of each category
CHUNKS_AT_ONCE = 8


def write_llama_archive(path: Path) -> int:
    """A complete archive; its tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(*TOKENS, size=COUNT, endpoint=True)
    layout = plan_layout(lengths.tolist(), "prompt", 0, [True] * COUNT)
    columns = InstructionColumns(
        id=[f"i{k:04d}" for k in range(COUNT)],
        category=[CATEGORIES[k % len(CATEGORIES)] for k in range(COUNT)],
        source=["random"] * COUNT,
        text=[""] * COUNT,
        error=[""] * COUNT,
    )
    create_archive(path, random_attributes(LAYERS, NEURONS), columns, layout)
    _write_masks(path, np.repeat(np.arange(COUNT), lengths), rng)
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(k, int(start), np.zeros(length, np.int32), np.arange(length, dtype=np.int32))
            for k, (start, length) in enumerate(zip(layout.token_start, lengths.tolist(), strict=True))
        ]
    )
    committer.close()
    return layout.tokens


def _write_masks(path: Path, owner: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Rows in whole chunks; owner: the instruction of each row."""
    array: Any = zarr.open_group(LocalStore(path), mode="r+", use_consolidated=False)["neuron/active"]
    step = array.chunks[0] * CHUNKS_AT_ONCE
    rows, liked = _category_rows(rng), _liked(rng)
    for start in range(0, len(owner), step):
        who = owner[start : start + step]
        category = who % len(CATEGORIES)
        words = rows[category, rng.integers(0, DRAWN_ROWS, len(who))]
        noise = rng.integers(0, 2**64, size=words.shape, dtype=np.uint64)
        other = np.roll(noise, 1, axis=1)
        words &= noise | other  # a neuron's frequency falls by a quarter
        words |= liked[who % len(liked)] & noise
        array[start : start + len(who)] = words.view(np.uint8).reshape(len(who), *array.shape[1:])


def _category_rows(rng: np.random.Generator) -> NDArray[np.uint64]:
    """uint64 (category, drawn row, word): bits of frequency p, mean 0.25, of which categories share the most."""
    common = rng.beta(0.6, 1.8, size=LAYERS * NEURONS).astype(np.float32)
    rows = np.empty((len(CATEGORIES), DRAWN_ROWS, common.size // 64), dtype=np.uint64)
    for of_category in rows:
        share = np.clip(common * rng.lognormal(0, 0.2, common.size).astype(np.float32), 0, 1)
        for row in of_category:
            bits = rng.random(common.size, dtype=np.float32) < share
            row[:] = np.packbits(bits, bitorder="little").view(np.uint64)
    return rows


def _liked(rng: np.random.Generator) -> NDArray[np.uint64]:
    """uint64 (instruction, word): 3 % of the neurons, active half the time more."""
    shape = (128, LAYERS * NEURONS // 64)
    liked = np.full(shape, 2**64 - 1, dtype=np.uint64)
    for _ in range(5):
        liked &= rng.integers(0, 2**64, size=shape, dtype=np.uint64)
    return liked
