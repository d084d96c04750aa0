"""On a GPU, the kernel's output equals vLLM's to the last bit, and its masks are the signs, also in replayed graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec, spec_of
from sparcom_extractor.capture.ops.activation_reference import Numerics, nonfinite_rows, pack_signs
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation, LayerCapture
from sparcom_extractor.capture.ops.count_kernel import check_tiles, split_runs
from sparcom_extractor.capture.ops.step_buffers import WRITE, MaskBuffer, RouteBuffer
from sparcom_extractor.capture.ops.topk_reference import store_topk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTH = 11008
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "silu": ("SiluAndMul", {}),
    "silu, gate second": ("MulAndSilu", {}),
    "gelu": ("GeluAndMul", {}),
    "gelu_tanh": ("GeluAndMul", {"approximate": "tanh"}),
    "fatrelu": ("FatreluAndMul", {"threshold": 0.01}),
    "swiglu_clamp": ("SiluAndMulWithClamp", {"swiglu_limit": 7.0}),
    "swiglu_clamp, alpha": ("SiluAndMulWithClamp", {"swiglu_limit": 7.0, "alpha": 1.702, "beta": 1.0}),
    "swiglu_oai": ("SwigluOAIAndMul", {}),
    "situ": ("SituAndMul", {"beta": 2.0}),
    "situ, linear": ("SituAndMul", {"beta": 2.0, "linear_beta": 3.0}),
}
COMPILED = ("silu", "silu, gate second", "gelu", "gelu_tanh", "fatrelu")


def known_spec(activation: torch.nn.Module) -> ActivationSpec:
    spec = spec_of(activation)
    assert spec is not None
    return spec


def mask_buffer(max_tokens: int, layers: int, neurons: int, device: str = "cuda", top_k: int = 0) -> MaskBuffer:
    counters = torch.zeros(layers, dtype=torch.int64, device=device)
    return MaskBuffer(neurons, top_k, counters, torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device))


def route_buffer(max_tokens: int, layers: int, top_k: int, device: str = "cpu") -> RouteBuffer:
    counters = torch.zeros(layers, dtype=torch.int64, device=device)
    return RouteBuffer(top_k, counters, torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device))


def captured_by(activation: torch.nn.Module, buffer: MaskBuffer, layer: int, numerics: Any) -> CapturedActivation:
    return CapturedActivation(LayerCapture(buffer, layer, activation, known_spec(activation), numerics))


@contextmanager
def vllm_activations(custom_ops: str) -> Iterator[Callable[[str], torch.nn.Module]]:
    """Return a function that makes vLLM's modules with its own kernels ("all") or without ("none")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises warnings
        from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
        from vllm.model_executor.layers import activation

        config = VllmConfig(compilation_config=CompilationConfig(mode=0, custom_ops=[custom_ops]))

    def make(name: str) -> torch.nn.Module:
        kind, arguments = ACTIVATIONS[name]
        if not hasattr(activation, kind):
            pytest.skip(f"this vLLM has no {kind}")
        module: torch.nn.Module = getattr(activation, kind)(**arguments)
        return module

    with set_current_vllm_config(config):
        yield make


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """Reset torch.compile: the same code compiled for many activations would count as recompilation and be refused."""
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_output_equals_that_of_vllms_kernels(name: str, dtype: torch.dtype) -> None:
    """For every 16-bit gate with 64 ups each, and four million others in float32, no value differs from vLLM's op."""
    from sparcom_extractor.capture.ops.compare import count_differences
    from sparcom_extractor.capture.ops.install import expected_numerics

    with vllm_activations("all") as make:
        activation = make(name)
        assert expected_numerics(activation, compiled=True) == Numerics.VLLM_KERNEL
        assert count_differences(activation, known_spec(activation), Numerics.VLLM_KERNEL, dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_the_output_equals_that_of_inductors_code(name: str, dtype: torch.dtype) -> None:
    """The output equals what torch.compile generates from `forward_native`."""
    from sparcom_extractor.capture.ops.compare import count_differences
    from sparcom_extractor.capture.ops.install import expected_numerics

    with vllm_activations("none") as make, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler raises warnings
        activation = make(name)
        assert expected_numerics(activation, compiled=True) == Numerics.INDUCTOR
        assert count_differences(activation, known_spec(activation), Numerics.INDUCTOR, dtype) == 0


def every_number(dtype: torch.dtype, rows: int) -> torch.Tensor:
    """Return (rows, 2·WIDTH) that repeats all bit patterns of 16 bits, or of the upper 16 of 32."""
    number = torch.arange(rows * 2 * WIDTH, device="cuda", dtype=torch.int64).reshape(rows, 2 * WIDTH) % 65536
    if dtype == torch.float32:
        return (number << 16).to(torch.int32).view(dtype)
    return number.to(torch.int16).view(dtype)


def expected_masks(activation: torch.nn.Module, gate_up: torch.Tensor) -> torch.Tensor:
    spec = known_spec(activation)
    return torch.from_numpy(pack_signs(spec.split(gate_up)[0].cpu(), spec.active_above)).cuda()


@pytest.mark.parametrize("numerics", [Numerics.VLLM_KERNEL, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_masks_are_the_signs(name: str, dtype: torch.dtype, numerics: Any) -> None:
    """This holds for all bit patterns, including NaN and subnormals, and with and without an activation output."""
    with vllm_activations("all") as make:
        activation = make(name)
        buffer = mask_buffer(8, 2, WIDTH)
        captured = captured_by(activation, buffer, 1, numerics)
        gate_up = every_number(dtype, 7)
        result = captured(gate_up)
        own = activation(gate_up)
    assert torch.equal(buffer.masks[:7, 1], expected_masks(activation, gate_up))
    assert not buffer.masks[7:].any()
    assert not buffer.masks[:, 0].any()
    assert buffer.write_counters.tolist() == [0, WRITE + 7]
    nonfinite = nonfinite_rows(captured.capture.spec.split(gate_up)[0].cpu()).tolist()
    assert buffer.nonfinite.tolist() == [[0, int(wrong)] for wrong in [*nonfinite, False]]
    assert bool(((result == own) | (result.isnan() & own.isnan())).all())


def test_views_have_the_masks_of_their_own_values() -> None:
    """This holds for rows of a wider tensor, every other column, and an odd width."""
    with vllm_activations("none") as make:
        activation = make("silu")
        for neurons in (176, 177, 1536):
            wide = torch.randn(9, 4 * neurons + 3, device="cuda", dtype=torch.bfloat16)
            for gate_up in (wide[:, 3 : 3 + 2 * neurons], wide[:, : 4 * neurons : 2]):
                buffer = mask_buffer(9, 1, neurons)
                result = captured_by(activation, buffer, 0, Numerics.INDUCTOR)(gate_up)
                assert torch.equal(buffer.masks[:, 0], expected_masks(activation, gate_up))
                torch.testing.assert_close(result, activation(gate_up))


@pytest.mark.parametrize("numerics", [Numerics.VLLM_KERNEL, None])
@torch.inference_mode()
def test_a_replayed_graph_captures_its_new_inputs(numerics: Any) -> None:
    """A CUDA graph is captured once per number of rows and replayed with other values: output, masks and writes are
    right."""
    with vllm_activations("all") as make:
        activation = make("silu")
        buffer = mask_buffer(8192, 2, WIDTH)
        captured = captured_by(activation, buffer, 1, numerics)
        for rows in (1, 2, 7, 8, 64, 255, 1024, 8192):
            fed = torch.zeros(rows, 2 * WIDTH, device="cuda", dtype=torch.bfloat16)
            captured(fed)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = captured(fed)
            before = buffer.write_counters.clone()
            for replay in range(1, 4):
                fed.normal_()
                buffer.masks.fill_(0xA5)
                graph.replay()
                assert torch.equal(buffer.masks[:rows, 1], expected_masks(activation, fed))
                assert bool((buffer.masks[rows:] == 0xA5).all())
                assert torch.equal(result, activation(fed))
                assert (buffer.write_counters - before).tolist() == [0, replay * (WRITE + rows)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_are_indexed_by_token_layer_and_k(dtype: torch.dtype) -> None:
    """With top_k 4, masks are (token, layer, k), and the output is in the given tensor."""
    with vllm_activations("all") as make:
        activation = make("silu")
        buffer = mask_buffer(9, 2, 1408, top_k=4)
        capture = LayerCapture(buffer, 1, activation, SILU, Numerics.VLLM_KERNEL)
        gate_up = torch.randn(28, 2 * 1408, device="cuda", dtype=dtype)
        out = torch.full((28, 1408), 7, device="cuda", dtype=dtype)
        result = capture.run_kernel(gate_up, capture.index, Numerics.VLLM_KERNEL, out)
        assert result is out
        assert torch.equal(out, activation(gate_up))
    expected = torch.from_numpy(pack_signs(SILU.split(gate_up)[0].cpu())).cuda().reshape(7, 4, 176)
    assert torch.equal(buffer.masks[:7, 1], expected)
    assert not buffer.masks[7:].any()
    assert not buffer.masks[:, 0].any()
    assert buffer.write_counters.tolist() == [0, WRITE + 7]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_routes_on_the_device_equal_the_cpu_references(dtype: torch.dtype, kind: torch.dtype) -> None:
    """Ids and weights have any dtype and any number of rows; one compilation serves every layer."""
    found = route_buffer(300, 17, 4, "cuda")
    reference = route_buffer(300, 17, 4)
    generator = torch.Generator().manual_seed(5)
    for layer, rows in ((0, 300), (1, 1), (16, 257), (16, 3), (5, 0)):
        ids = torch.randint(0, 65535, (rows, 4), generator=generator).to(kind)
        weights = torch.rand(rows, 4, generator=generator).to(dtype)
        logits = torch.randn(rows, 60, generator=generator)
        logits[1::7, 59] = torch.nan
        weights[::5, 2] = torch.inf
        store_topk(found, layer, ids.cuda(), weights.cuda(), 1.5, logits.cuda())
        store_topk(reference, layer, ids, weights, 1.5, logits)
    assert np.array_equal(found.experts.cpu().numpy(), reference.experts.numpy())
    assert np.array_equal(found.weights.cpu().numpy(), reference.weights.numpy(), equal_nan=True)
    assert found.write_counters.tolist() == reference.write_counters.tolist()
    assert torch.equal(found.nonfinite.cpu(), reference.nonfinite)


@torch.inference_mode()
def test_the_kernel_is_compiled_once_for_all_numbers_of_rows() -> None:
    """A new number of rows needs no compilation, which a step would wait for."""
    from sparcom_extractor.capture.ops import activation_kernel

    def compiled() -> int:
        return len(activation_kernel._gated_activation_kernel.device_caches[torch.cuda.current_device()][0])

    with vllm_activations("none") as make:
        buffer = mask_buffer(8192, 1, WIDTH)
        captured = captured_by(make("silu"), buffer, 0, Numerics.INDUCTOR)
        captured(torch.randn(2, 2 * WIDTH, device="cuda", dtype=torch.bfloat16))
        before = compiled()
        for rows in (1, 2, 3, 16, 17, 4096, 8192, 0):
            captured(torch.randn(rows, 2 * WIDTH, device="cuda", dtype=torch.bfloat16))
        assert compiled() == before
    assert buffer.write_counters.tolist() == [9 * WRITE + sum((2, 1, 2, 3, 16, 17, 4096, 8192))]


@torch.inference_mode()
def test_the_op_never_synchronizes() -> None:
    """PyTorch's own guard detects no synchronization in the op."""
    with vllm_activations("none") as make:
        buffer = mask_buffer(64, 1, WIDTH)
        captured = captured_by(make("silu"), buffer, 0, Numerics.INDUCTOR)
        gate_up = torch.randn(64, 2 * WIDTH, device="cuda", dtype=torch.bfloat16)
        captured(gate_up)
        torch.cuda.set_sync_debug_mode("error")
        try:
            captured(gate_up)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_too_many_rows_are_refused_before_the_launch() -> None:
    """Rows past the buffer would be written out of bounds; the host refuses by the shape alone."""
    with vllm_activations("none") as make:
        captured = captured_by(make("silu"), mask_buffer(4, 1, 64), 0, Numerics.INDUCTOR)
        with pytest.raises(RuntimeError, match=r"may hold 4 tokens .* got 5"):
            captured(torch.zeros(5, 128, device="cuda"))


def test_counts_on_the_device_equal_the_cpu_references() -> None:
    """The case has LLaMA-2-7B's width and 3,000 rows in runs of all lengths, several sharing a slot. Packed counters
    take up to 255 full rows, and a flush moves them."""
    from sparcom_extractor.capture.ops.count_kernel import DEVICE, REFERENCE

    generator = torch.Generator().manual_seed(5)
    masks = torch.randint(0, 256, (3000, 3, WIDTH // 8), generator=generator, dtype=torch.uint8)
    masks[:600] = 255
    length = np.array([1, 599, 1, 2, 397, 256, 257, 1487])
    tiles = torch.from_numpy(split_runs(np.cumsum(length) - length, length, np.array([0, 1, 2, 2, 3, 1, 0, 3])))
    few = torch.tensor([[0, 128, 2], [128, 127, 2], [600, 1, 0], [7, 64, 1]], dtype=torch.int32)
    check_tiles(tiles.numpy(), 3000, 4)
    found = []
    for device, kernels in (("cuda", DEVICE), ("cpu", REFERENCE)):
        counts = torch.zeros((4, 3, WIDTH), dtype=torch.int32, device=device)
        packed = torch.zeros((4, 3, 2, WIDTH // 8, 4), dtype=torch.uint8, device=device)
        kernels.add(masks.to(device), tiles.to(device), counts)
        kernels.add_packed(masks.to(device), few.to(device), packed)
        kernels.flush(packed, counts, torch.tensor([2, 0], device=device))
        found.append((counts.cpu(), packed.cpu()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1][1].any(), "slot 1 was not flushed"
