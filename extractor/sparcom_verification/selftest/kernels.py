"""The steps that look at the op alone, without an engine.

check_kernels   bits and products of the captured activation as it would be installed on this device, for the gates that
                most models have, odd widths, special values and all 65,536 gates of 16 bits: bits against NumPy on the
                CPU, products against the very module that vLLM would have run, by its kernels and compiled; and both
                again out of a replayed CUDA graph
time_kernels    every way to capture and vLLM's own, replayed in CUDA graphs, in seconds and bytes a second
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparcom_extractor.capture.discovery.activations import GatedFFN, spec_of
from sparcom_extractor.capture.ops.activation_reference import Numerics, pack_signs
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation, LayerCapture
from sparcom_extractor.capture.ops.install import ffn_numerics
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_verification.selftest.results import Check, Fact, Measure, Row

if TYPE_CHECKING:
    from sparcom_verification.selftest.process import Context

WIDTHS = (7, 1003, 1016, 11008)
ROWS = (1, 33, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILED_WIDTHS = (1003,)  # torch.compile takes seconds for each
SPECIAL = (-0.0, 0.0, float("nan"), float("inf"), -float("inf"), 1e-40, -1e-40, 6e-8, -6e-8)
TIMED_NEURONS = 11008  # of LLaMA-2-7B
CACHE_BYTES = 256 << 20  # inputs in turn that no cache holds
MOST_INPUTS = 2048
TIMED_ROUNDS = 20
CAPTURED: dict[str, Numerics | None] = {
    "rounded as the kernel": Numerics.VLLM_KERNEL,
    "rounded as compiled": Numerics.INDUCTOR,
    "signs beside the kernel": None,
}


def check_kernels(context: Context) -> None:
    """Step: bits and products, by kind and dtype."""
    draw = torch.Generator().manual_seed(3)
    cuda = context.device == "cuda"
    ways = [Way("vLLM's kernel", True, False), Way("vLLM's compiled code", False, True)]
    for way in ways if cuda else [Way("vLLM", False, False)]:
        with vllm_activations(custom=way.custom) as activations:
            for name, make in activations.items():
                for dtype in DTYPES[:2] if way.compiled else DTYPES:
                    label = f"{name} {str(dtype).removeprefix('torch.')}, as {way.name}"
                    for row in _check_kind(context.device, label, make, dtype, way, draw):
                        context.tell(row)


@dataclass(frozen=True, slots=True)
class Way:
    """How vLLM would run an activation: custom: by a kernel of its own. compiled: by torch.compile."""

    name: str
    custom: bool
    compiled: bool


@contextmanager
def vllm_activations(*, custom: bool) -> Iterator[dict[str, Callable[[], torch.nn.Module]]]:
    """vLLM's modules by their archive names; `custom` says whether they run vLLM's kernels or PyTorch's."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul

    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["all" if custom else "none"]))
    with set_current_vllm_config(config):
        yield {"silu": SiluAndMul, "gelu": GeluAndMul, "gelu_tanh": lambda: GeluAndMul(approximate="tanh")}


def _check_kind(
    device: str, label: str, make: Callable[[], torch.nn.Module], dtype: torch.dtype, way: Way, draw: torch.Generator
) -> Iterator[Row]:
    """All widths and row counts of one activation and dtype, summed up in two checks, and two of a replayed graph."""
    rounding = _installed_rounding(make(), dtype, way) if device == "cuda" else None
    if device == "cuda":
        yield Fact(label, f"the product is made {'beside the signs' if rounding is None else 'with the signs'}")
    found, replayed = _Sum(), _Sum()
    for width in COMPILED_WIDTHS if way.compiled else WIDTHS:
        tested = _Tested(make(), width, device, rounding, compiled=way.compiled)
        for rows in ROWS:
            found.add(tested, make_gate_up(rows, width, dtype, draw).to(device))
        if width in COMPILED_WIDTHS:
            found.add(tested, every_gate(width, dtype, draw).to(device))
        if device == "cuda":
            replayed.add_replayed(tested, [make_gate_up(ROWS[-1], width, dtype, draw).to(device) for _ in range(3)])
    yield from found.checks(label)
    if device == "cuda":
        yield from replayed.checks(f"{label}, CUDA graph")


def _installed_rounding(activation: torch.nn.Module, dtype: torch.dtype, way: Way) -> Numerics | None:
    """Whose arithmetic an installation on this device would follow; see `install.py`."""
    rule = spec_of(activation)
    assert rule is not None  # noqa: S101  (vLLM's own gated activations, see `vllm_activations`)
    parent = torch.nn.Module()
    parent.act_fn = activation
    ffn = GatedFFN(0, "selftest", parent, "act_fn", rule, WIDTHS[-1], WIDTHS[-1])
    return ffn_numerics(ffn, dtype, compiled=way.compiled)


def mask_buffer(max_tokens: int, layers: int, neurons: int, device: torch.device, top_k: int = 0) -> MaskBuffer:
    counters = torch.zeros(layers, dtype=torch.int64, device=device)
    return MaskBuffer(neurons, top_k, counters, torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device))


def _captured(
    activation: torch.nn.Module, buffer: MaskBuffer, layer: int, numerics: Numerics | None
) -> CapturedActivation:
    spec = spec_of(activation)
    assert spec is not None  # noqa: S101  (vLLM's own gated activations)
    return CapturedActivation(LayerCapture(buffer, layer, activation, spec, numerics))


class _Tested:
    """A captured activation of one width, and what it is held against."""

    def __init__(
        self, activation: torch.nn.Module, width: int, device: str, rounding: Numerics | None, *, compiled: bool
    ) -> None:
        self.buffer = mask_buffer(max(ROWS[-1], 65536 // width + 1), 2, width, torch.device(device))
        captured = _captured(activation, self.buffer, 1, rounding)
        torch._dynamo.reset()  # it would count the kinds before as recompilations of the same code, and refuse
        self.captured: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(captured, fullgraph=True, dynamic=True) if compiled else captured
        )
        self.own: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(activation.forward_native, fullgraph=True, dynamic=True)  # type: ignore[arg-type]
            if compiled
            else activation
        )

    def masks(self, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The masks that were written, on the host."""
        return self.buffer.masks[:rows, 1].cpu().numpy()

    def poison(self) -> None:
        """So that what is not written is seen."""
        self.buffer.masks.fill_(0xA5)


class _Sum:
    """Bits and values compared, over many shapes."""

    def __init__(self) -> None:
        self.bits = self.wrong_bits = self.values = self.wrong_values = 0

    def add(self, tested: _Tested, gate_up: torch.Tensor) -> None:
        """One call of the op."""
        tested.poison()
        self._compare(tested, gate_up, tested.captured(gate_up))

    def add_replayed(self, tested: _Tested, inputs: Sequence[torch.Tensor]) -> None:
        """The op in a CUDA graph, replayed with each of the inputs at the address it was captured with."""
        fixed = inputs[0].clone()
        tested.captured(fixed)  # compiles what there is to compile
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            product = tested.captured(fixed)
        for gate_up in inputs:
            fixed.copy_(gate_up)
            tested.poison()
            graph.replay()
            self._compare(tested, gate_up, product)

    def _compare(self, tested: _Tested, gate_up: torch.Tensor, product: torch.Tensor) -> None:
        rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
        expected = pack_signs(gate_up[:, :neurons].cpu())
        self.bits += rows * neurons
        self.wrong_bits += int(np.bitwise_count(tested.masks(rows) ^ expected).sum())
        self.values += product.numel()
        self.wrong_values += different_values(product, tested.own(gate_up.clone()))

    def checks(self, label: str) -> Iterator[Check]:
        """What was found."""
        yield Check(f"{label}, signs", "bits, and NumPy's on the CPU", self.bits, self.wrong_bits, "bits")
        yield Check(f"{label}, product", "values, and vLLM's own", self.values, self.wrong_values, "values")


def make_gate_up(rows: int, neurons: int, dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    """Random (rows, 2·neurons) with special values sprinkled in, both halves."""
    values = torch.randn(rows, 2 * neurons, generator=draw) * 3
    special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), values.shape, generator=draw)]
    return torch.where(torch.rand(values.shape, generator=draw) < 0.05, special, values).to(dtype)


def every_gate(neurons: int, dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    """Rows whose gates are all 65,536 values of a 16-bit type (float32: those of bfloat16), with random ups."""
    sixteen = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    gates = sixteen.view(torch.float16 if dtype == torch.float16 else torch.bfloat16).to(dtype)
    padded = torch.cat([gates, gates[: -len(gates) % neurons]]).reshape(-1, neurons)
    return torch.cat([padded, make_gate_up(len(padded), neurons, dtype, draw)[:, :neurons]], dim=1)


def different_values(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many values differ; one NaN is like another, and one zero: a sum of products is the same with both."""
    return int(((one != other) & ~(one.isnan() & other.isnan())).sum())


def time_kernels(context: Context, *, rows: Sequence[int]) -> None:
    """Step: seconds of the captured activation and of vLLM's own, at LLaMA-2-7B's width in bfloat16, by rows."""
    with vllm_activations(custom=True) as activations:
        activation = activations["silu"]()
        for count in rows:
            _time_rows(context, activation, count)


def _time_rows(context: Context, activation: Any, rows: int) -> None:
    """Each op on inputs in turn, larger together than the cache, as one graph."""
    bytes_each = rows * TIMED_NEURONS * 3 * 2  # gate and up read, product written, two bytes each
    with_signs = bytes_each + rows * -(-TIMED_NEURONS // 8)
    count = max(2, min(MOST_INPUTS, CACHE_BYTES // bytes_each))
    inputs = [torch.randn(rows, 2 * TIMED_NEURONS, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    compiled = torch.compile(activation.forward_native, fullgraph=True, dynamic=False)
    own = _tell_time(context, f"{rows} rows, vLLM's kernel", activation, inputs, bytes_each)
    _tell_time(context, f"{rows} rows, vLLM's compiled code", compiled, inputs, bytes_each)
    for name, rounding in CAPTURED.items():
        buffer = mask_buffer(rows, 1, TIMED_NEURONS, torch.device("cuda"))
        captured = _captured(activation, buffer, 0, rounding)
        size = with_signs if rounding else with_signs + rows * TIMED_NEURONS * 2  # the gate is read twice
        ours = _tell_time(context, f"{rows} rows, captured, {name}", captured, inputs, size)
        context.tell(Measure(f"{rows} rows, vLLM's kernel / captured, {name}", own / ours, ""))


def _tell_time(
    context: Context, name: str, call: Callable[[torch.Tensor], Any], inputs: Sequence[torch.Tensor], size: int
) -> float:
    from sparcom_verification.selftest.timing import graph_seconds

    seconds = graph_seconds([lambda one=one: call(one) for one in inputs], TIMED_ROUNDS)  # type: ignore[misc]
    middle = median(seconds)
    note = f"{size / middle / 1e9:,.0f} GB/s of {size / 1e6:,.1f} MB"
    context.tell(Measure(name, middle * 1e6, "µs", min(seconds) * 1e6, max(seconds) * 1e6, len(seconds), note=note))
    return middle
