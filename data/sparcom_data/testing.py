"""Small valid archives with random masks, for the tests of this project and of code that reads its archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.layout import plan_layout
from sparcom_data.metadata import ArchiveAttributes, CaptureInfo, EngineInfo, ModelInfo, Positions
from sparcom_data.storage import DurableStore


def random_attributes(
    layers: int, neurons: int, *, positions: Positions = "prompt", max_tokens: int = 0
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
        capture=CaptureInfo(positions=positions, max_tokens=max_tokens),
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
    failed: Sequence[int] = (),
) -> NDArray[np.bool_]:
    """Write an archive of random masks and token ids; instructions in `failed` are stored as failed.

    Returns:
        bool (tokens, layer, neuron): the masks that were written.
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
    create_archive(path, random_attributes(layers, neurons), columns, layout, chunk_tokens=chunk_tokens)
    masks = rng.random((layout.tokens, layers, neurons)) < 0.4
    array = zarr.open_group(DurableStore(path), mode="r+")["neuron/active"]
    assert isinstance(array, zarr.Array)  # noqa: S101
    packed = np.packbits(masks, axis=-1, bitorder="little")
    array.with_config({"write_empty_chunks": True})[:] = packed  # zarr leaves chunks of zeros out otherwise
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
    return masks
