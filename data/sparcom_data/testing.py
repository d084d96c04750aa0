"""Small valid archives of random masks or counts, for tests of this project and of other readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema import Origin
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.schema.metadata import (
    ArchiveAttributes,
    CaptureInfo,
    EngineInfo,
    Granularity,
    ModelInfo,
    MoeInfo,
    Positions,
)
from sparcom_data.storage import DurableStore


def random_attributes(
    layers: int,
    neurons: int,
    *,
    positions: Positions = "prompt",
    max_tokens: int = 0,
    granularity: Granularity = "token",
    moe: MoeInfo | None = None,
) -> ArchiveAttributes:
    """Return attributes for an archive written without an engine: `layers` dense layers, then those of `moe`."""
    model = ModelInfo(
        id="random",
        architecture="RandomForTests",
        dtype="float32",
        layers=layers + (len(moe.layer_ids) if moe else 0),
        layer_ids=list(range(layers)),
        neurons=neurons,
        activation="silu",
        tokenizer_sha256="",
        moe=moe,
    )
    capture = CaptureInfo(
        granularity=granularity, positions=positions, max_tokens=max_tokens, components=model.components
    )
    return ArchiveAttributes(
        created="2026-01-01T00:00:00+00:00",
        model=model,
        engine=EngineInfo(vllm="0", torch="0", device="cpu", enforce_eager=True),
        capture=capture,
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
    origins: bool = False,
    sources: Sequence[str] = ("random",),
) -> NDArray[Any]:
    """Write an archive of random masks and token ids; instructions in `failed` are stored as failed. `origins`: store
    random token origins. `sources`: assigned to the instructions in turn.

    The same arguments with granularity `count` give the counts of the same masks.

    Returns:
        The written masks, bool (tokens, layer, neuron); for granularity `count` the counts, uint32
        (instruction, layer, neuron), 0 for failed instructions.
    """
    rng = np.random.default_rng(seed)
    attributes = random_attributes(layers, neurons, granularity=granularity)
    chunks = {"chunk_tokens": chunk_tokens, "chunk_instructions": chunk_instructions}
    layout = _create(path, attributes, categories, per_category, lengths, failed, rng, chunks, origins, sources)
    masks = rng.random((layout.tokens, layers, neurons)) < 0.4
    counts = count_masks(masks, layout)
    if granularity == "count":
        fill_array(path, "neuron/count", counts)
    else:
        fill_array(path, "neuron/active", np.packbits(masks, axis=-1, bitorder="little"))
    _commit(path, layout, failed, rng)
    return counts if granularity == "count" else masks


@dataclass(frozen=True, slots=True)
class MoeTruth:
    """Values written to an archive of an MoE model.

    masks: bool (tokens, layer, neuron). expert: uint16, weight: float32 (tokens, moe_layer, choice). expert_active:
    bool (tokens, moe_layer, choice, neuron). shared_active: bool (tokens, moe_layer, neuron).
    """

    layout: Layout
    masks: NDArray[np.bool_]
    expert: NDArray[np.uint16]
    weight: NDArray[np.float32]
    expert_active: NDArray[np.bool_]
    shared_active: NDArray[np.bool_]


def write_random_moe_archive(
    path: Path,
    *,
    categories: Sequence[str] = ("CLS", "CODE"),
    per_category: int = 5,
    dense_layers: int = 1,
    neurons: int = 20,
    moe_layers: int = 2,
    experts: int = 6,
    choices: int = 2,
    expert_neurons: int = 12,
    shared_neurons: int = 20,
    seed: int = 0,
    lengths: tuple[int, int] = (3, 12),
    chunk_tokens: int = 8,
    chunk_instructions: int = 4,
    failed: Sequence[int] = (),
    granularity: Granularity = "token",
    origins: bool = False,
    sources: Sequence[str] = ("random",),
) -> MoeTruth:
    """Write an archive of a model with dense layers, then MoE layers. Values are random; the top-k experts are ordered
    by descending weight. The same arguments with granularity `count` give the counts of the same masks.
    """
    rng = np.random.default_rng(seed)
    moe = MoeInfo(
        layer_ids=list(range(dense_layers, dense_layers + moe_layers)),
        experts=experts,
        experts_per_token=choices,
        neurons=expert_neurons,
        shared_neurons=shared_neurons,
    )
    attributes = random_attributes(dense_layers, neurons if dense_layers else 0, moe=moe, granularity=granularity)
    chunks = {"chunk_tokens": chunk_tokens, "chunk_instructions": chunk_instructions}
    layout = _create(path, attributes, categories, per_category, lengths, failed, rng, chunks, origins, sources)
    tokens = layout.tokens
    truth = MoeTruth(
        layout,
        masks=rng.random((tokens, dense_layers, attributes.model.neurons)) < 0.4,
        expert=rng.random((tokens, moe_layers, experts)).argsort(axis=-1)[..., :choices].astype(np.uint16),
        weight=-np.sort(-rng.random((tokens, moe_layers, choices), dtype=np.float32), axis=-1),
        expert_active=rng.random((tokens, moe_layers, choices, expert_neurons)) < 0.4,
        shared_active=rng.random((tokens, moe_layers, shared_neurons)) < 0.4,
    )
    for name, values in (_moe_counts(truth, experts) if granularity == "count" else _moe_rows(truth)).items():
        if name.split("/")[0] in attributes.model.components:
            fill_array(path, name, values)
    _commit(path, layout, failed, rng)
    return truth


def _moe_rows(truth: MoeTruth) -> dict[str, NDArray[Any]]:
    packed = {
        "neuron/active": truth.masks,
        "expert_neuron/active": truth.expert_active,
        "shared_expert_neuron/active": truth.shared_active,
    }
    rows: dict[str, NDArray[Any]] = {
        name: np.packbits(masks, axis=-1, bitorder="little") for name, masks in packed.items()
    }
    return rows | {"router/expert": truth.expert, "router/weight": truth.weight}


def _moe_counts(truth: MoeTruth, experts: int) -> dict[str, NDArray[Any]]:
    chosen = truth.expert[..., None] == np.arange(experts)  # (tokens, moe_layer, choice, expert)
    active = np.einsum("tmce,tmcn->tmen", chosen.astype(np.uint8), truth.expert_active.astype(np.uint8))
    return {
        "neuron/count": count_masks(truth.masks, truth.layout),
        "router/count": count_masks(chosen.any(axis=2), truth.layout),
        "expert_neuron/count": count_masks(active.astype(bool), truth.layout),
        "shared_expert_neuron/count": count_masks(truth.shared_active, truth.layout),
    }


def _create(
    path: Path,
    attributes: ArchiveAttributes,
    categories: Sequence[str],
    per_category: int,
    lengths: tuple[int, int],
    failed: Sequence[int],
    rng: np.random.Generator,
    chunks: dict[str, int],
    origins: bool,
    sources: Sequence[str],
) -> Layout:
    count = len(categories) * per_category
    prompt = rng.integers(lengths[0], lengths[1] + 1, size=count)
    runnable = [index not in failed for index in range(count)]
    layout = plan_layout([int(length) for length in prompt], "prompt", 0, runnable)
    columns = InstructionColumns(
        id=[f"i{index:03d}" for index in range(count)],
        category=[categories[index // per_category] for index in range(count)],
        source=[sources[index % len(sources)] for index in range(count)],
        text=[f"text {index}" for index in range(count)],
        error=["" if ok else "failed on purpose" for ok in runnable],
        origin=_random_origins(prompt) if origins else None,
    )
    create_archive(path, attributes, columns, layout, **chunks)
    return layout


def _random_origins(lengths: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Return random origins: content, template and special tokens; the first token of each prompt is content."""
    rng = np.random.default_rng(1)
    found = [rng.choice(3, size=length, p=(0.5, 0.3, 0.2)).astype(np.uint8) for length in lengths.tolist()]
    for one in found:
        one[:1] = Origin.CONTENT
    return found


def _commit(path: Path, layout: Layout, failed: Sequence[int], rng: np.random.Generator) -> None:
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(
                index=index,
                row=int(layout.token_start[index]),
                ids=rng.integers(0, 1000, size=layout.capacity[index]).astype(np.int32),
                positions=np.arange(layout.capacity[index], dtype=np.int32),
            )
            for index in range(len(layout.capacity))
            if index not in failed
        ]
    )
    committer.close()


def count_masks(masks: NDArray[np.bool_], layout: Layout) -> NDArray[np.uint32]:
    """Sum masks, bool (tokens, layer, neuron), over each instruction's rows: uint32 (instruction, layer, neuron)."""
    stops = layout.token_start + layout.capacity
    sums = [masks[start:stop].sum(axis=0) for start, stop in zip(layout.token_start, stops, strict=True)]
    return np.array(sums, dtype=np.uint32).reshape(len(sums), *masks.shape[1:])


def fill_array(path: Path, name: str, values: NDArray[Any]) -> None:
    """Write all values of an array with plain zarr, including chunks of zeros, which zarr omits by default."""
    array = zarr.open_group(DurableStore(path), mode="r+")[name]
    assert isinstance(array, zarr.Array)  # noqa: S101
    array.with_config({"write_empty_chunks": True})[:] = values
