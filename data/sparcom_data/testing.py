"""Small valid archives of random masks or counts, for the tests of this project and of code that reads archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.layout import Layout, plan_layout
from sparcom_data.metadata import ArchiveAttributes, CaptureInfo, EngineInfo, Granularity, ModelInfo, Positions
from sparcom_data.storage import DurableStore


def random_attributes(
    layers: int,
    neurons: int,
    *,
    positions: Positions = "prompt",
    max_tokens: int = 0,
    granularity: Granularity = "token",
) -> ArchiveAttributes:
    """Attributes of an archive that no engine wrote."""
    return ArchiveAttributes(
        created="2026-01-01T00:00:00+00:00",
        model=ModelInfo(
            id="random",
            architecture="RandomForTests",
            dtype="float32",
            layers=layers,
            layer_ids=list(range(layers)),
            neurons=neurons,
            activation="silu",
            tokenizer_sha256="",
        ),
        engine=EngineInfo(vllm="0", torch="0", device="cpu", enforce_eager=True),
        capture=CaptureInfo(granularity=granularity, positions=positions, max_tokens=max_tokens),
    )


def write_random_archive(
    path: Path,
    *,
    categories: Sequence[str] = ("CLS", "CODE"),
    per_category: int = 5,
    layers: int = 3,
    neurons: int = 20,
    seed: int = 0,
    lengths: tuple[int, int] = (3, 12),
    chunk_tokens: int = 8,
    chunk_instructions: int = 4,
    failed: Sequence[int] = (),
    granularity: Granularity = "token",
) -> NDArray[Any]:
    """Write an archive of random masks and token ids; instructions in `failed` are stored as failed.

    The same arguments with the other granularity give its twin: the counts of the same masks.

    Returns:
        bool (tokens, layer, neuron): the masks that were written; or, for granularity `count`, uint32
        (instruction, layer, neuron): the counts, 0 for what failed.
    """
    rng = np.random.default_rng(seed)
    count = len(categories) * per_category
    prompt = rng.integers(lengths[0], lengths[1] + 1, size=count)
    runnable = [index not in failed for index in range(count)]
    layout = plan_layout([int(length) for length in prompt], "prompt", 0, runnable)
    columns = InstructionColumns(
        id=[f"i{index:03d}" for index in range(count)],
        category=[categories[index // per_category] for index in range(count)],
        source=["random"] * count,
        text=[f"text {index}" for index in range(count)],
        error=["" if ok else "failed on purpose" for ok in runnable],
    )
    attributes = random_attributes(layers, neurons, granularity=granularity)
    create_archive(path, attributes, columns, layout, chunk_tokens=chunk_tokens, chunk_instructions=chunk_instructions)
    masks = rng.random((layout.tokens, layers, neurons)) < 0.4
    counts = count_masks(masks, layout)
    if granularity == "count":
        fill_array(path, "neuron/count", counts)
    else:
        fill_array(path, "neuron/active", np.packbits(masks, axis=-1, bitorder="little"))
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(
                index=index,
                row=int(layout.token_start[index]),
                ids=rng.integers(0, 1000, size=layout.capacity[index]).astype(np.int32),
                positions=np.arange(layout.capacity[index], dtype=np.int32),
            )
            for index in range(count)
            if runnable[index]
        ]
    )
    committer.close()
    return counts if granularity == "count" else masks


def count_masks(masks: NDArray[np.bool_], layout: Layout) -> NDArray[np.uint32]:
    """The counts of masks, bool (tokens, layer, neuron): uint32 (instruction, layer, neuron), over all rows of each."""
    stops = layout.token_start + layout.capacity
    sums = [masks[start:stop].sum(axis=0) for start, stop in zip(layout.token_start, stops, strict=True)]
    return np.array(sums, dtype=np.uint32).reshape(len(sums), *masks.shape[1:])


def fill_array(path: Path, name: str, values: NDArray[Any]) -> None:
    """Write all values of an array with plain zarr, chunks of zeros included: zarr leaves those out by itself."""
    array = zarr.open_group(DurableStore(path), mode="r+")[name]
    assert isinstance(array, zarr.Array)  # noqa: S101
    array.with_config({"write_empty_chunks": True})[:] = values
