"""vLLM's own Triton experts, run on the CPU: captured routes and masks equal a plain loop over tokens and experts.

The class is that of the installed vLLM, with everything around its kernels. The kernels need a GPU and are written out
in torch: rows sorted by expert, blocks and padding. To run the classes of another version, put its sources first on
PYTHONPATH.
"""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema import NO_EXPERT
from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.activation_reference import Numerics, activation_output
from sparcom_extractor.capture.ops.captured_activation import LayerCapture
from sparcom_extractor.capture.ops.experts import install_experts
from sparcom_extractor.capture.ops.step_buffers import WRITE, StepBuffers
from sparcom_extractor.vllm_surface.moe import has_clamp_limit

EXPERTS, TOP_K, HIDDEN, NEURONS, LAYERS = 7, 3, 16, 48, 2
BLOCK = 4  # rows per block of one expert
MOST = 40


def launch_moe_kernel(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, _a_scale: Any, _b_scale: Any, topk_weights: Any,
    sorted_ids: torch.Tensor, expert_ids: torch.Tensor, padded: torch.Tensor, weigh: bool, top_k: int,
    _config: Any, **_further: Any,
) -> None:  # fmt: skip
    """Emulate vLLM's fused_moe_kernel: every block of sorted ids has one expert; id i is entry i of the step's
    topk_ids."""
    rows = c.view(-1, c.shape[-1])
    assert len(rows) == len(a) * top_k
    for place in range(int(padded)):
        ids = int(sorted_ids[place])
        if ids >= len(rows):
            continue  # padding
        row = b[int(expert_ids[place // BLOCK])] @ a[ids // top_k]
        rows[ids] = row * topk_weights.reshape(-1)[ids] if weigh else row


def assign(topk_ids: torch.Tensor, _config: Any, _tokens: int, _top_k: int, experts: int, *_: Any, **__: Any) -> Any:
    """Emulate vLLM's moe_align_block_size: sort ids by expert and pad each expert's ids to whole blocks."""
    flat, ids, owners = topk_ids.reshape(-1).long(), [], []
    for expert in range(experts):
        own = (flat == expert).nonzero()[:, 0].flip(0)  # in no particular order
        blocks = -(-len(own) // BLOCK)
        ids.append(torch.nn.functional.pad(own, (0, blocks * BLOCK - len(own)), value=len(flat)))
        owners += [expert] * blocks
    sorted_ids = torch.cat(ids)
    return sorted_ids, torch.tensor(owners), torch.tensor([len(sorted_ids)])


@pytest.fixture(scope="module")
def triton_moe() -> Any:
    """Return vLLM's module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises warnings
        from vllm.model_executor.layers.fused_moe.experts import triton_moe
    return triton_moe


@pytest.fixture
def make_experts(triton_moe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes vLLM's experts with launches in torch; keywords change their configuration."""
    from vllm.model_executor.layers.fused_moe import config

    monkeypatch.setattr(triton_moe, "invoke_fused_moe_triton_kernel", launch_moe_kernel)
    monkeypatch.setattr(triton_moe, "_prepare_expert_assignment", assign)
    monkeypatch.setattr(triton_moe, "try_get_optimal_moe_config", lambda *_, **__: {"BLOCK_SIZE_M": BLOCK})
    monkeypatch.setattr(triton_moe, "tl", SimpleNamespace(float32="float32"))  # a placeholder without a GPU
    monkeypatch.setattr(triton_moe.ops, "moe_sum", lambda rows, out, *_: out.copy_(rows.sum(dim=1)))
    monkeypatch.setattr(triton_moe.TritonExperts, "_uses_post_gemm2_hook", lambda *_: False, raising=False)
    parallel = config.FusedMoEParallelConfig.make_no_parallel()

    def make(**facts: Any) -> Any:
        values = {
            "num_experts": EXPERTS, "experts_per_token": TOP_K, "hidden_dim": HIDDEN, "num_local_experts": EXPERTS,
            "intermediate_size": NEURONS, "intermediate_size_per_partition": NEURONS, "num_logical_experts": EXPERTS,
            "activation": triton_moe.MoEActivation.SILU, "device": "cpu", "routing_method": None,
            "moe_parallel_config": parallel, "in_dtype": torch.float32,
        }  # fmt: skip
        made = object.__new__(config.FusedMoEConfig)  # its own __init__ needs an engine's configuration
        for field in dataclasses.fields(config.FusedMoEConfig):
            default = None if field.default is dataclasses.MISSING else field.default
            object.__setattr__(made, field.name, values.get(field.name, default))
        return triton_moe.TritonExperts(made, config.FusedMoEQuantConfig.make(**facts))

    return make


def layer_of(experts: Any, kind: Any, index: int, scale: float = 1.0) -> MoeLayer:
    kernel = SimpleNamespace(fused_experts=experts)
    method = SimpleNamespace(moe_kernel=kernel)
    router = SimpleNamespace(select_experts=lambda **_: None)
    runner = SimpleNamespace(routed_experts=SimpleNamespace(quant_method=method), activation=kind, router=router)
    return MoeLayer(
        index, f"layers.{index}.mlp", runner, SILU, EXPERTS, TOP_K, NEURONS, NEURONS, scale=scale, shared=None
    )


class Model:
    """Layers of vLLM's experts with weights, and the buffers that capture them."""

    def __init__(self, make: Any, kind: Any, numerics: Numerics | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.up = torch.randn(LAYERS, EXPERTS, 2 * NEURONS, HIDDEN, generator=generator)
        self.down = torch.randn(LAYERS, EXPERTS, HIDDEN, NEURONS, generator=generator)
        widths = Widths(moe_layer_ids=range(LAYERS), top_k=TOP_K, expert_neurons=NEURONS)
        self.buffers = StepBuffers(MOST, widths, torch.device("cpu"))
        self.experts, self.plain, self.kind = [make() for _ in range(LAYERS)], make(), kind
        assert self.buffers.routes is not None
        assert self.buffers.experts is not None
        self.routes, self.masks = self.buffers.routes, self.buffers.experts
        self.modes = [
            install_experts(layer_of(experts, kind, index, scale=1.5), index, self.routes, self.masks, numerics)
            for index, experts in enumerate(self.experts)
        ]

    def apply(self, experts: Any, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        """Call the experts as vLLM's modular kernel does."""
        output = torch.zeros_like(x)
        experts.apply(
            output=output, hidden_states=x, w1=self.up[layer], w2=self.down[layer], topk_weights=weights, topk_ids=ids,
            activation=self.kind, global_num_experts=EXPERTS, expert_map=None, a1q_scale=None, a2_scale=None,
            workspace13=torch.full((MOST * TOP_K * max(NEURONS, HIDDEN),), torch.nan),
            workspace2=torch.full((MOST * TOP_K * max(2 * NEURONS, HIDDEN),), torch.nan),
            expert_tokens_meta=None, apply_router_weight_on_input=False,
        )  # fmt: skip
        return output

    def expected_masks(self, layer: int, x: torch.Tensor, ids: torch.Tensor) -> np.ndarray[Any, Any]:
        """Return the masks of a plain loop: (rows, top_k, bytes)."""
        bits = np.zeros((*ids.shape, NEURONS), dtype=bool)
        for row, experts in enumerate(ids.tolist()):
            for k, expert in enumerate(experts):
                bits[row, k] = (self.up[layer, expert, :NEURONS] @ x[row] > 0).numpy()
        return np.packbits(bits, axis=-1, bitorder="little")


def step(rows: int, ids_dtype: torch.dtype = torch.int32, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return a step's inputs (rows, hidden), ids and weights (rows, top_k); ids do not repeat within a row."""
    generator = torch.Generator().manual_seed(rows + seed)
    x = torch.randn(rows, HIDDEN, generator=generator)
    scores = torch.rand(rows, EXPERTS, generator=generator)
    weights, ids = scores.topk(TOP_K)
    return x, ids.to(ids_dtype), weights


def run_reference(
    capture: LayerCapture, gate_up: torch.Tensor, index: torch.Tensor, numerics: Numerics, out: torch.Tensor
) -> None:
    """Emulate the kernel on the CPU."""
    capture.buffer.store(int(index), gate_up, capture.spec)
    out.copy_(activation_output(gate_up, capture.spec, numerics))


@pytest.mark.parametrize("numerics", [None, Numerics.VLLM_KERNEL])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
def test_every_token_and_expert_has_its_own_routes_and_neurons(
    make_experts: Any, triton_moe: Any, monkeypatch: pytest.MonkeyPatch, ids_dtype: torch.dtype, numerics: Any
) -> None:
    """For any number of rows and both modes, capture stores ids and weights as given, and the signs of w1's first half
    for each (token, k). Rows past the step stay unchanged, and the experts' output equals that without capture."""
    monkeypatch.setattr(LayerCapture, "run_kernel", run_reference)
    model = Model(make_experts, triton_moe.MoEActivation.SILU, numerics)
    assert model.modes == [numerics or "signs"] * LAYERS
    for rows in (1, 2, 17, MOST, 5):
        model.buffers.clear()
        model.masks.masks.fill_(0xA5)
        model.routes.experts.copy_(torch.full(model.routes.experts.shape, NO_EXPERT, dtype=torch.int32))
        for layer in range(LAYERS):
            x, ids, weights = step(rows, ids_dtype, seed=100 * layer)
            found = model.apply(model.experts[layer], layer, x, ids, weights)
            torch.testing.assert_close(found, model.apply(model.plain, layer, x, ids, weights), rtol=1e-5, atol=1e-4)
            assert np.array_equal(model.masks.masks[:rows, layer].numpy(), model.expected_masks(layer, x, ids))
            assert model.routes.experts[:rows, layer].tolist() == ids.tolist()
            assert torch.equal(model.routes.weights[:rows, layer], weights * 1.5)
        assert bool((model.masks.masks[rows:] == 0xA5).all())
        assert bool((model.routes.experts[rows:].to(torch.int32) == NO_EXPERT).all())
        assert model.buffers.write_counters.tolist() == [WRITE + rows] * 2 * LAYERS
        assert not model.buffers.nonfinite.any()


def test_a_permuted_step_is_found(make_experts: Any, triton_moe: Any) -> None:
    """The loop distinguishes rows and experts: masks of permuted experts, or of other rows, differ."""
    model = Model(make_experts, triton_moe.MoEActivation.SILU)
    x, ids, weights = step(9)
    model.apply(model.experts[0], 0, x, ids, weights)
    expected = model.expected_masks(0, x, ids)
    assert not np.array_equal(expected[:, ::-1], expected)
    assert not np.array_equal(expected[::-1], expected)
    assert np.array_equal(model.masks.masks[:9, 0].numpy(), expected)


def fused(make: Any, kind: Any) -> tuple[Any, list[str]]:
    """An installed activation that records whether its kernel or vLLM's activation ran."""
    ran: list[str] = []

    def noting() -> Any:
        experts = make()
        experts.activation = lambda *_, **__: ran.append("own")
        return experts

    return Model(noting, kind, Numerics.VLLM_KERNEL).experts[0].activation, ran


def test_calls_that_were_not_compared_use_vllms_own_activation(
    make_experts: Any, triton_moe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another activation than the layer's, more arguments, or an output of another dtype or layout: signs are captured
    separately."""
    kinds = triton_moe.MoEActivation
    activation, ran = fused(make_experts, kinds.SILU)
    monkeypatch.setattr(LayerCapture, "run_kernel", lambda *_, **__: ran.append("kernel"))
    gate_up, out = torch.randn(6, 2 * NEURONS), torch.empty(6, NEURONS)
    activation(kinds.SILU, out, gate_up)
    assert ran[-1] == "kernel"
    own = [
        lambda: activation(kinds.GELU, out, gate_up),
        lambda: activation(kinds.SILU, out, gate_up, topk_ids=None),
        lambda: activation(kinds.SILU, out.half(), gate_up),
        lambda: activation(kinds.SILU, torch.empty(NEURONS, 6).t(), gate_up),
        lambda: activation(kinds.SILU, torch.empty(7, NEURONS), gate_up),
    ]
    for call in own:
        ran.clear()
        call()
        assert set(ran) == {"own"}


def test_a_clamp_limit_is_detected(make_experts: Any) -> None:
    """With a limit, vLLM clamps gate and up in another kernel. Experts that do not report a limit are not trusted."""
    assert not has_clamp_limit(make_experts())
    assert has_clamp_limit(make_experts(gemm1_clamp_limit=7.0))
    assert has_clamp_limit(SimpleNamespace())  # type: ignore[arg-type]
    assert not has_clamp_limit(SimpleNamespace(gemm1_clamp_limit=None)), "as vLLM 0.24 has it"  # type: ignore[arg-type]
    assert has_clamp_limit(SimpleNamespace(activation_config=SimpleNamespace()))  # type: ignore[arg-type]


def test_experts_that_do_not_expose_neurons_are_refused(make_experts: Any, triton_moe: Any) -> None:
    """Experts quantized in blocks, or run by any other kernel, are refused with the setting that helps."""
    kind = triton_moe.MoEActivation.SILU
    blocks = make_experts()
    object.__setattr__(blocks, "quant_config", SimpleNamespace(block_shape=[128, 128]))
    with pytest.raises(UnsupportedModelError, match="quantized in blocks"):
        Model(lambda: blocks, kind)
    for other in ("FlashInferExperts", "TritonWNA16Experts", "BatchedTritonExperts"):
        hidden = type(other, (), {})
        with pytest.raises(UnsupportedModelError, match=f"{other} runs .*moe_backend 'triton'"):
            Model(hidden, kind)


def test_layers_of_one_buffer_share_their_numerics(make_experts: Any, triton_moe: Any) -> None:
    """Two layers with different numerics cannot share a buffer, because one kernel serves both."""
    kind = triton_moe.MoEActivation.SILU
    model = Model(make_experts, kind, Numerics.VLLM_KERNEL)
    other = dataclasses.replace(layer_of(make_experts(), kind, 1), spec=ActivationSpec("gelu"))
    with pytest.raises(UnsupportedModelError, match="one activation in all layers"):
        install_experts(other, 1, model.routes, model.masks, Numerics.VLLM_KERNEL)
