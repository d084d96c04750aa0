"""MoE layers are found by vLLM's runner. Layers that cannot be captured are refused with the remedy."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_extractor.capture.discovery.describe import Widths, describe_found, refuse_model, widths_here
from sparcom_extractor.capture.discovery.findings import Findings, find_captured
from sparcom_extractor.capture.ops.experts import capturable_experts, install_experts, sort_by_weight_desc
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.protocol import WorkerDescription
from sparcom_extractor.vllm_surface import moe
from sparcom_extractor.worker.mixin import refuse_host_counts
from sparcom_extractor.writer.targets import ArrayPart

CPU = torch.device("cpu")


class Linear(nn.Module):
    """A linear layer with the attributes of vLLM's. parts: number of tensor-parallel ranks."""

    def __init__(self, inputs: int, outputs: int, parts: int = 1) -> None:
        super().__init__()
        self.input_size, self.output_size = inputs, outputs
        self.input_size_per_partition = inputs // parts


class SiluAndMul(nn.Module):
    """Recognized by its name."""


class FFN(nn.Module):
    """Fused gate and up, and down; shared experts may have a gate of their own."""

    def __init__(self, hidden: int, neurons: int, *, parts: int = 1, gate: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden, 2 * neurons)
        self.down_proj = Linear(neurons, hidden, parts)
        if gate:
            self.expert_gate = Linear(hidden, 1)
        self.act_fn = SiluAndMul()


class TritonExperts:
    """Recognized by its name."""

    def __init__(self, **config: Any) -> None:
        self.quant_config = SimpleNamespace(**({"block_shape": None} | config))
        self.applied: list[dict[str, Any]] = []

    def apply(self, **arguments: Any) -> str:
        self.applied.append(arguments)
        return "output"

    def activation(self, activation: Any, output: Any, input: Any) -> None:  # noqa: A002
        """vLLM's own method."""


def runner_of(shared: nn.Module | None = None, **changed: Any) -> nn.Module:
    """A runner of eight experts of 48 neurons with top_k 2."""
    values: dict[str, Any] = {
        "experts": 8, "top_k": 2, "neurons": 48, "ranks": 1, "ep": False, "dp": 1, "sequence": False,
        "activation": "silu", "scale": 1.0, "eplb": None, "fused": 0, "router": "FusedTopKRouter",
        "kernel": TritonExperts(),
    } | changed  # fmt: skip
    runner = type(moe.MOE_RUNNER, (nn.Module,), {})()
    parallel = SimpleNamespace(use_ep=values["ep"], dp_size=values["dp"])
    runner.moe_config = SimpleNamespace(
        num_experts=values["experts"],
        experts_per_token=values["top_k"],
        intermediate_size_per_partition_unpadded=values["neurons"] // values["ranks"],
        tp_size=values["ranks"],
        moe_parallel_config=parallel,
        is_sequence_parallel=values["sequence"],
    )
    facts = {"eplb_state": values["eplb"], "num_fused_shared_experts": values["fused"]}
    runner.router = type(values["router"], (), facts | {"select_experts": lambda *_, **__: "chosen"})()
    runner.activation = SimpleNamespace(value=values["activation"])
    runner.routed_scaling_factor = values["scale"]
    runner.layer_name = "a layer"
    runner.shared_experts = None if shared is None else SimpleNamespace(_layer=shared)
    kernel = values["kernel"] and SimpleNamespace(fused_experts=values["kernel"])
    runner.routed_experts = SimpleNamespace(quant_method=SimpleNamespace(moe_kernel=kernel))
    return runner


def moe_block(shared: FFN | None = None, **changed: Any) -> nn.Module:
    """A decoder layer's MoE block."""
    block = nn.Module()
    if shared is not None:
        block.shared_expert = shared
    block.experts = runner_of(shared, **changed)
    return block


def model_of(*ffns: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList()
    for ffn in ffns:
        layer = nn.Module()
        layer.mlp = ffn
        model.layers.append(layer)
    return model


def found_in(*ffns: nn.Module) -> Findings:
    return find_captured(model_of(*ffns), range(len(ffns)))


def test_dense_routed_and_shared_experts_are_distinguished() -> None:
    """An FFN within an MoE layer is its shared experts; in a layer of its own it is dense."""
    found = found_in(FFN(16, 40), moe_block(FFN(16, 24, gate=True)), FFN(16, 40), moe_block(FFN(16, 24, gate=True)))
    assert [ffn.layer_id for ffn in found.dense] == [0, 2]
    assert [layer.layer_id for layer in found.moe] == [1, 3]
    assert [ffn.name for ffn in found.shared] == ["layers.1.mlp.shared_expert", "layers.3.mlp.shared_expert"]
    assert describe_found(found) == WorkerDescription(
        layer_ids=(0, 2),
        neurons=40,
        activation="silu",
        moe=MoeInfo(layer_ids=[1, 3], experts=8, experts_per_token=2, neurons=48, shared_neurons=24),
    )
    assert widths_here(found) == Widths([0, 2], 40, [1, 3], 2, 48, 24)
    assert [str(name) for name in widths_here(found).columns()] == [
        "layer 0", "layer 2", "layer 1 (router)", "layer 3 (router)", "layer 1 (experts)", "layer 3 (experts)",
        "layer 1 (shared experts)", "layer 3 (shared experts)",
    ]  # fmt: skip


def test_a_model_with_only_moe_layers_has_no_dense_layers() -> None:
    """Components that a model lacks have width 0 and no layers."""
    found = found_in(moe_block(), moe_block())
    described = describe_found(found)
    assert described.moe is not None
    assert (described.layer_ids, described.neurons, described.moe.shared_neurons) == ((), 0, 0)
    assert set(StepBuffers(4, widths_here(found), CPU).arrays()) == {
        "router/expert",
        "router/weight",
        "expert_neuron/active",
    }


def test_a_shared_expert_as_wide_as_the_model_is_found() -> None:
    """The gate of a shared expert takes the model's width, but is not mistaken for the down projection."""
    assert found_in(moe_block(FFN(24, 24, gate=True))).shared[0].intermediate_size == 24


def beside() -> nn.Module:
    block = moe_block()
    block.residual = FFN(16, 24)
    return block


def two_shared() -> nn.Module:
    both = nn.Module()
    both.one, both.two = FFN(16, 24), FFN(16, 24)
    block = nn.Module()
    block.shared, block.experts = both, runner_of(both)
    return block


def unknown() -> nn.Module:
    block = nn.Module()
    block.experts = type("Other", (type(moe.MOE_RUNNER, (nn.Module,), {}),), {})()
    return block


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "expert parallelism": (lambda: moe_block(ep=True), "no enable_expert_parallel"),
    "data parallelism": (lambda: moe_block(dp=2), "data_parallel_size=1"),
    "sequence parallelism": (lambda: moe_block(sequence=True), "sequence parallelism"),
    "balanced experts": (lambda: moe_block(eplb=object()), "without enable_eplb"),
    "shared among the routed": (lambda: moe_block(fused=1), "runs its shared experts as routed experts"),
    "experts without neurons": (lambda: moe_block(router="ZeroExpertRouter"), "experts without neurons"),
    "another activation": (
        lambda: moe_block(activation="swigluoai"),
        "experts with silu, gelu, gelu_tanh; .* 'swigluoai'",
    ),
    "another number": (lambda: moe_block(experts=9), "layers.0.mlp.experts and layers.1.mlp.experts differ"),
    "another k": (lambda: moe_block(top_k=3), "same activation, number of experts, top_k and widths"),
    "another width": (lambda: moe_block(neurons=56), "differ"),
    "shared experts in one layer": (lambda: moe_block(FFN(16, 24)), "differ"),
    "an FFN beside the experts": (beside, "several in layers 1"),
    "two in the shared experts": (two_shared, "shared experts must be one gated FFN; .* hold 2"),
    "an unknown runner": (unknown, r"is of another kind \(.*moe_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_layers_are_refused(case: str) -> None:
    """A second layer that differs, or whose rows or experts are not the step's own, is refused with the remedy."""
    make, reason = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        found_in(moe_block(), make())


KERNELS: dict[str, tuple[Any, str]] = {
    "hides the neurons": (type("TrtLlmBf16Experts", (), {})(), "TrtLlmBf16Experts runs .* moe_backend 'triton'"),
    "no kernel": (None, "SimpleNamespace runs .*, and does not expose their neurons"),
    "quantized in blocks": (TritonExperts(block_shape=[128, 128]), "not quantized in blocks"),
    "another instruction set": (
        type("CPUUnquantizedExperts", (), {"isa": "amx", "_use_zentorch": False})(),
        "dtype 'float32'",
    ),
    "another library": (
        type("CPUUnquantizedExperts", (), {"isa": "vec", "_use_zentorch": True})(),
        "does not expose their neurons",
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_a_kernel_that_does_not_expose_neurons_is_refused(case: str) -> None:
    """The message names the kernel and the setting that helps. Zeros never stand in for data."""
    kernel, reason = KERNELS[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        capturable_experts(found_in(moe_block(kernel=kernel)).moe[0])


def test_vllms_moe_classes_have_the_expected_names() -> None:
    """The attributes that capture reads exist in the installed vLLM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
        from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts as Real
        from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    assert MoERunner.__name__ == moe.MOE_RUNNER
    assert {"shared_experts", "activation"} <= set(dir(MoERunner))
    assert {"num_experts", "experts_per_token", "intermediate_size_per_partition_unpadded"} <= set(
        FusedMoEConfig.__dataclass_fields__
    )
    assert (Real.__name__, CPUUnquantizedExperts.__name__) == (moe.TRITON_EXPERTS, moe.CPU_EXPERTS)
    assert CPUUnquantizedExperts.isa == moe.CPU_ISA
    assert list(inspect.signature(FusedMoERouter.select_experts).parameters)[1:3] == ["hidden_states", "router_logits"]


def test_stored_routes_are_those_of_the_experts() -> None:
    """Ids and weights are stored as the kernel gets them; weights include the factor of the routed experts. The kernel
    gets the same inputs, and its result is returned."""
    layer = found_in(moe_block(scale=2.5)).moe[0]
    kernel = layer.runner.routed_experts.quant_method.moe_kernel.fused_experts
    buffers = StepBuffers(8, Widths(moe_layer_ids=[0], top_k=2, expert_neurons=48), CPU)
    assert buffers.routes is not None
    assert buffers.experts is not None
    install_experts(layer, 0, buffers.routes, buffers.experts)
    ids, weights = torch.tensor([[5, 2], [0, 7]]), torch.tensor([[0.7, 0.3], [0.5, 0.25]])
    logits = torch.zeros(2, 8)
    logits[1, 4] = torch.nan  # of an expert that is not selected
    assert layer.runner.router.select_experts(hidden_states=None, router_logits=logits) == "chosen"
    assert kernel.apply(topk_ids=ids, topk_weights=weights, hidden_states=None) == "output"
    assert kernel.applied[0]["topk_ids"] is ids
    assert buffers.routes.experts[:2, 0].tolist() == ids.tolist()
    torch.testing.assert_close(buffers.routes.weights[:2, 0], weights * 2.5)
    assert buffers.routes.experts[2:].numpy().min() == 65_535, "rows that no step wrote"
    assert buffers.routes.nonfinite.flatten().tolist()[:3] == [0, 1, 0]
    buffers.clear()
    kernel.apply(topk_ids=ids, topk_weights=weights, hidden_states=None)
    assert not buffers.nonfinite.any(), "logits are read once"


def test_unordered_top_k_experts_are_sorted_by_descending_weight() -> None:
    """vLLM's CPU router returns the top-k experts unordered; ids move with their weights."""
    ids, weights = sort_by_weight_desc(
        torch.tensor([[3, 1, 2], [9, 8, 7]]), torch.tensor([[0.1, 0.7, 0.2], [3.0, 2, 1]])
    )
    assert ids.tolist() == [[1, 2, 3], [9, 8, 7]]
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.2, 0.1], [3.0, 2, 1]]))


def config_of(ranks: int = 1, device: str = "cuda", *, eager: bool = False) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
        device_config=SimpleNamespace(device_type=device),
        model_config=SimpleNamespace(enforce_eager=eager),
    )


def test_ranks_must_split_every_width_into_whole_bytes() -> None:
    """This holds for dense, shared and routed widths: the first one that does not split is named, with the rule."""
    refuse_model(config_of(2), found_in(FFN(16, 32, parts=2), moe_block(FFN(16, 48, parts=2), neurons=64, ranks=2)))
    for model in (
        [FFN(16, 40, parts=2), moe_block(FFN(16, 48, parts=2), neurons=64, ranks=2)],
        [FFN(16, 32, parts=2), moe_block(FFN(16, 24, parts=2), neurons=64, ranks=2)],
        [FFN(16, 32, parts=2), moe_block(FFN(16, 48, parts=2), neurons=56, ranks=2)],
    ):
        with pytest.raises(UnsupportedModelError, match=r"8 × ranks; .* has (40|24|56) neurons for 2 ranks"):
            refuse_model(config_of(2), found_in(*model))


def test_an_ffn_that_every_rank_holds_whole_is_refused() -> None:
    """A replicated FFN has no slices to write; the message does not mention bytes."""
    with pytest.raises(UnsupportedModelError, match="has 32 neurons and this rank of 2 has 32"):
        refuse_model(config_of(2), found_in(FFN(16, 32)))


def test_counting_that_would_fill_the_memory_is_refused() -> None:
    """The message says how much memory counting needs and which setting to lower. Counts that fit are accepted."""
    part = ArrayPart("expert_neuron/count", None, (24, 60, 1408))  # type: ignore[arg-type]
    assert refuse_host_counts([part], 4) is None
    assert "lower max_num_seqs" in str(refuse_host_counts([part], 10**7))


def test_compiled_experts_on_a_cpu_are_refused() -> None:
    """On a CPU the compiler traces into experts. Dense models and GPUs are unaffected."""
    with pytest.raises(UnsupportedModelError, match="enforce_eager, which is the default there"):
        refuse_model(config_of(device="cpu"), found_in(moe_block()))
    refuse_model(config_of(device="cpu", eager=True), found_in(moe_block()))
    refuse_model(config_of(device="cpu"), found_in(FFN(16, 40)))
    refuse_model(config_of(), found_in(moe_block()))
