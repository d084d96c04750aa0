"""Convert findings to metadata of the archive, to widths of this process, and to reasons why it cannot capture them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparcom_data.create import split_problem
from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.protocol import WorkerDescription


@dataclass(frozen=True, slots=True)
class LayerName:
    """Layer number in the model, and name of the layer's component; "" for a dense FFN."""

    number: int
    component: str

    def __str__(self) -> str:
        return f"layer {self.number}" + (f" ({self.component})" if self.component else "")


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes that one process captures. layer_ids, moe_layer_ids: numbers of its layers in the model."""

    layer_ids: Sequence[int] = ()
    neurons: int = 0
    moe_layer_ids: Sequence[int] = ()
    top_k: int = 0
    expert_neurons: int = 0
    shared_neurons: int = 0

    def columns(self) -> list[LayerName]:
        """Return the layers of all components in the order of the write counters."""
        parts = ["router", "experts", *(["shared experts"] if self.shared_neurons else [])]
        moe = [LayerName(number, part) for part in parts for number in self.moe_layer_ids]
        return [*(LayerName(number, "") for number in self.layer_ids), *moe]


def describe_found(found: Findings) -> WorkerDescription:
    """Return the archive's metadata of a model; fusion, mode and memory stay empty."""
    moe = None
    if found.moe:
        first = found.moe[0]
        moe = MoeInfo(
            layer_ids=[layer.layer_id for layer in found.moe],
            experts=first.num_experts,
            experts_per_token=first.top_k,
            neurons=first.intermediate_size,
            shared_neurons=first.shared.intermediate_size if first.shared else 0,
        )
    return WorkerDescription(
        layer_ids=tuple(ffn.layer_id for ffn in found.dense),
        neurons=found.dense[0].intermediate_size if found.dense else 0,
        activation=found.layers[0].spec.kind,
        moe=moe,
    )


def widths_here(found: Findings) -> Widths:
    """Return the widths that this process captures: the slices of its tensor-parallel rank."""
    first = found.moe[0] if found.moe else None
    return Widths(
        layer_ids=[ffn.layer_id for ffn in found.dense],
        neurons=found.dense[0].intermediate_size_per_partition if found.dense else 0,
        moe_layer_ids=[layer.layer_id for layer in found.moe],
        top_k=first.top_k if first else 0,
        expert_neurons=first.intermediate_size_per_partition if first else 0,
        shared_neurons=first.shared.intermediate_size_per_partition if first and first.shared else 0,
    )


def refuse_model(config: Any, found: Findings) -> None:
    """Refuse compiled experts on a CPU, and widths that ranks cannot split into whole bytes. config: VllmConfig."""
    if found.moe and config.device_config.device_type == "cpu" and not config.model_config.enforce_eager:
        raise UnsupportedModelError(
            "experts of a compiled model cannot be captured on a CPU, where the compiler traces into them. Start the "
            "engine with enforce_eager, which is the default there"
        )
    ranks = int(config.parallel_config.tensor_parallel_size)
    if ranks == 1:
        return
    for layer in [*found.layers, *found.shared]:
        size, here = layer.intermediate_size, layer.intermediate_size_per_partition
        if here * ranks != size:
            raise UnsupportedModelError(
                f"tensor-parallel ranks must split every layer evenly; {layer.name} has {size} neurons and this "
                f"rank of {ranks} has {here}. Use tensor_parallel_size=1"
            )
        if size % (8 * ranks):
            raise UnsupportedModelError(split_problem(size, ranks, layer.name))
