"""What was found of a model, in plain types for the process that starts the engine, and whether ranks can share it.

It does not know how anything is captured.
"""

from __future__ import annotations

from typing import Any

from sparcom_data.create import split_problem
from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.ops.buffers import Widths
from sparcom_extractor.protocol import WorkerDescription


def describe_found(found: Findings) -> WorkerDescription:
    """Describe the layers that were found; fusion, mode and memory are left empty."""
    rules = [ffn.rule for ffn in found.dense] + [layer.rule for layer in found.moe]
    dense = found.dense[0] if found.dense else None
    return WorkerDescription(
        layer_ids=tuple(ffn.layer_id for ffn in found.dense),
        neurons=dense.neurons if dense else 0,
        activation=rules[0].kind,
        moe=_describe_experts(found),
    )


def _describe_experts(found: Findings) -> MoeInfo | None:
    if not found.moe:
        return None
    first = found.moe[0]
    return MoeInfo(
        layer_ids=[layer.layer_id for layer in found.moe],
        experts=first.experts,
        experts_per_token=first.choices,
        neurons=first.neurons,
        shared_neurons=first.shared.neurons if first.shared else 0,
    )


def widths_here(found: Findings) -> Widths:
    """What of the model this process captures: a tensor-parallel rank its slice of every width."""
    first = found.moe[0] if found.moe else None
    return Widths(
        layers=len(found.dense),
        neurons=found.dense[0].neurons_here if found.dense else 0,
        moe_layers=len(found.moe),
        choices=first.choices if first else 0,
        expert_neurons=first.neurons_here if first else 0,
        shared_neurons=first.shared.neurons_here if first and first.shared else 0,
        layer_ids=tuple(ffn.layer_id for ffn in found.dense),
        moe_layer_ids=tuple(layer.layer_id for layer in found.moe),
    )


def refuse_model(config: Any, found: Findings) -> None:
    """Raise where an engine of this configuration (vLLM's) cannot capture what was found.

    Raises:
        UnsupportedModelError: experts in compiled code of a CPU; widths that ranks cannot share on byte borders.
    """
    if found.moe and config.device_config.device_type == "cpu" and not config.model_config.enforce_eager:
        raise UnsupportedModelError(
            "experts of a compiled model cannot be captured on a CPU: the compiler looks into them. Start the engine "
            "with enforce_eager, which is the default there"
        )
    ranks = int(config.parallel_config.tensor_parallel_size)
    if ranks == 1:
        return
    widths = {ffn.name: (ffn.neurons, ffn.neurons_here) for ffn in [*found.dense, *found.shared]}
    widths |= {layer.name: (layer.neurons, layer.neurons_here) for layer in found.moe}
    for name, (neurons, here) in widths.items():
        if here * ranks != neurons:
            raise UnsupportedModelError(
                f"each tensor-parallel rank writes its part of every layer; {name} has {neurons} neurons and this rank "
                f"of {ranks} has {here}. Use tensor_parallel_size=1"
            )
        if neurons % (8 * ranks):
            raise UnsupportedModelError(split_problem(neurons, ranks, name))
