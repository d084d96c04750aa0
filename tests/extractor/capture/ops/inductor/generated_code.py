# ruff: noqa: E402  (PyTorch keeps functions of torch.cuda at import, so they are faked before)
"""Print the calls that TorchInductor generates for an FFN on a device of capability 9.0, as JSON; needs no device.

For each kind of FFN: a list of calls in order, [name, buffers...]. Run as a program, because it fakes torch.cuda.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

PROPERTIES = SimpleNamespace(
    name="H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    gcnArchName="", uuid="0",
)  # fmt: skip


def fake_device() -> None:
    """Answer as a device of capability 9.0 would, as far as the generation of code asks."""
    cuda: Any = torch.cuda
    for name, value in {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "_lazy_init": None,
        "get_device_capability": (9, 0), "get_device_properties": PROPERTIES, "synchronize": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None, "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }.items():  # fmt: skip
        setattr(cuda, name, lambda *_, value=value, **__: value)
    core: Any = torch._C
    core._cuda_getDevice = core._cuda_getDeviceCount = core._cuda_getCurrentRawStream = lambda *_: 0


fake_device()

import torch._inductor.config as settings
from torch import Tensor
from torch._functorch.aot_autograd import aot_module_simplified
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import sparcom_extractor.capture.ops.captured_activation  # noqa: F401  defines the ops

ROWS, HIDDEN, NEURONS = 8192, 4096, 11008
CALL = re.compile(r"(?:(triton_\w+)\.run|(extern_kernels\.mm)|torch\.ops\.(sparcom\.\w+)\.default)\((.*)\)")


class CodeGenerated(BaseException):
    """Carries the generated code past PyTorch's handlers."""


def fake_triton() -> None:
    """Let Triton and TorchInductor see the device. The generated code is not compiled."""
    stand_in: Any = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        utils=SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": 232448}),
    )
    driver.set_active(stand_in)
    _triton.has_triton = lambda *_, **__: True
    graph: Any = GraphLowering
    graph.compile_to_module = stop
    settings.compile_threads = 1
    settings.force_disable_caches = True  # type: ignore[attr-defined]


def stop(graph: Any) -> None:
    code = graph.codegen()[0]
    raise CodeGenerated(getattr(code, "value", code))


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """vLLM's `SiluAndMul.forward_native`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def captured(gate_up: Tensor, layer: Tensor) -> Tensor:
    result: Tensor = torch.ops.sparcom.gated_activation(gate_up, layer, 0)
    return result


def signs(gate_up: Tensor, layer: Tensor) -> Tensor:
    torch.ops.sparcom.capture_signs(gate_up, layer, 0)
    return silu_and_mul(gate_up)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda gate_up, _: silu_and_mul(gate_up),
    "captured": captured,
    "signs": signs,
}


def calls(activation: Callable[[Tensor, Tensor], Tensor]) -> list[list[str]]:
    """Return the calls of an FFN of LLaMA-2-7B's shape, behind a residual addition and a norm."""

    def ffn(
        x: Tensor, residual: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, layer: Tensor
    ) -> tuple[Tensor, ...]:
        x = x + residual
        wide = x.float()
        hidden = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * norm
        return activation(hidden @ gate_up.t(), layer) @ down.t(), x

    shapes = ((ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN,), (2 * NEURONS, HIDDEN), (HIDDEN, NEURONS))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
            inputs.append(torch.empty((), dtype=torch.int64, device="cuda"))
            aot_module_simplified(
                make_fx(ffn, tracing_mode="real")(*inputs),
                inputs,
                fw_compiler=compile_fx_inner,
                inference_compiler=compile_fx_inner,
                decompositions=select_decomp_table(),
                keep_inference_input_mutations=True,
            )
    except CodeGenerated as generated:
        code = str(generated.args[0])
    body = code[code.index("def call") :]
    found = [(match[1] or match[2] or match[3], match[4]) for match in CALL.finditer(body)]
    return [[name, *re.findall(r"\bbuf\d+", arguments)] for name, arguments in found]


if __name__ == "__main__":
    fake_triton()
    sys.stdout.write(json.dumps({name: calls(activation) for name, activation in KINDS.items()}))
