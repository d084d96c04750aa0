"""Compile the capture kernels ahead of time, exactly as launches on a device would. Needs no GPU.

    python compiled_kernels.py CAPABILITY...
    python compiled_kernels.py launches

The launch functions run on CPU tensors. A stand-in for the CUDA driver answers Triton's JIT, which then specializes and
compiles for each capability, such as 90. It keeps the machine code in place of loading it. Triton's wheel carries ptxas
and the disassembler. Prints JSON, one object per launch: {case, capability, registers, stack, local, sass, ptx}; `sass`
is a list of instructions without operands, up to the last EXIT. With `launches` it instead compares launches of kept
machine code with those of Triton's JIT, and prints how many were equal, and how many kernels steps compiled.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.backends.nvidia
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec
from sparcom_extractor.capture.ops import count_kernel
from sparcom_extractor.capture.ops.activation_kernel import gated_activation
from sparcom_extractor.capture.ops.activation_reference import FUSED, ON_CUDA, Numerics
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, RouteBuffer
from sparcom_extractor.capture.ops.topk_kernel import launch_topk

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
BYTES_OF_SHARED_MEMORY = 163 * 1024  # of an A100, the least of the three
KINDS = (
    ActivationSpec("gelu"),
    ActivationSpec("gelu_tanh"),
    ActivationSpec("fatrelu", threshold=0.01),
    ActivationSpec("swiglu_clamp", limit=7.0, alpha=1.702, beta=1.0),
    ActivationSpec("swiglu_oai", "interleaved", limit=7.0, alpha=1.702, beta=1.0),
    ActivationSpec("situ", beta=2.0, linear_beta=3.0),
)
WIDTHS = (  # neurons, layers, top_k
    *((11008, 32, 0), (5504, 32, 0), (2752, 32, 0), (1376, 32, 0)),  # LLaMA-2-7B, tensor parallel 1 to 8
    *((14336, 32, 0), (14336, 32, 2)),  # Mistral, Mixtral
    *((1408, 24, 4), (704, 24, 4), (5632, 24, 0)),  # Qwen1.5-MoE-A2.7B: experts, tensor parallel 1 and 2; shared
    *((1003, 4, 0), (176, 4, 4)),  # tests
)


class Driver:
    """Answers Triton as CUDA's driver would. The device's number is its capability, so that Triton separates them."""

    def __init__(self) -> None:
        self.capability = 0
        self.kernels: list[dict[str, Any]] = []
        self.launched: list[int] = []
        self.arguments: list[Any] = []  # of the last launch: grid and the kernel's arguments
        self.utils = SimpleNamespace(load_binary=self.load, get_device_properties=self.properties, unload_module=id)
        knobs.runtime.kernel_load_end_hook = self.keep_ptx

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": BYTES_OF_SHARED_MEMORY}

    def load(self, _name: str, cubin: bytes, *_: Any) -> tuple[int, int, int, int, int]:
        self.kernels.append({"capability": self.capability, "cubin": cubin})
        return len(self.kernels), len(self.kernels) - 1, 0, 0, 1024

    def keep_ptx(self, _module: int, function: int, _name: str, files: dict[str, str], _hash: str) -> None:
        self.kernels[function]["ptx"] = next(Path(path).read_text() for name, path in files.items() if "ptx" in name)

    def launcher_cls(self, _source: Any, _metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, _stream: int, function: int, *others: Any) -> None:
            self.launched.append(function)
            values = [item.data_ptr() if isinstance(item, torch.Tensor) else item for item in others[4:]]
            self.arguments = [(x, y, z), *values]

        return launch


class Immediate:
    """A transfer queue whose device is the host."""

    def upload(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values)

    def launch(self, work: Any) -> None:
        work()

    def send(self, *_: Any) -> None:
        """Drop the data."""


def disassembled(cubin: bytes) -> dict[str, Any]:
    """Return the resources and the instructions of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([TOOLS / "cuobjdump", "-res-usage", file.name])
        sass = run([TOOLS / "nvdisasm", "-c", file.name]).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    code = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    last = max(at for at, name in enumerate(code) if name == "EXIT")
    return {"registers": registers, "stack": stack, "local": local, "sass": code[: last + 1]}


def launch_activation(
    neurons: int, layers: int, top_k: int, dtype: torch.dtype, numerics: Numerics | None, spec: ActivationSpec
) -> str:
    """Launch the activation kernel for 8 tokens. Return a description."""
    counters = torch.zeros(layers, dtype=torch.int64)
    buffer = MaskBuffer(neurons, top_k, counters, torch.zeros((8, layers), dtype=torch.uint8))
    gate_up = torch.zeros(8 * max(1, top_k), 2 * neurons, dtype=dtype)
    gated_activation(gate_up, torch.tensor(1), buffer, spec, numerics)
    return f"activation {spec.kind} {numerics and numerics.value} {str(dtype)[6:]} {neurons}x{top_k}"


def launch_cases(*, kinds: bool) -> Iterator[str]:
    """Launch every kernel as the engine does, on shapes of real models. Yield a description after each launch."""
    for neurons, layers, top_k in WIDTHS:
        for numerics in (*ON_CUDA, None):
            yield launch_activation(neurons, layers, top_k, torch.bfloat16, numerics, SILU)
    for dtype in (torch.float16, torch.float32):
        for numerics in (*ON_CUDA, None):
            yield launch_activation(11008, 32, 0, dtype, numerics, SILU)
    for spec in KINDS if kinds else ():
        for numerics in ON_CUDA:
            if spec.kind in FUSED[numerics]:
                yield launch_activation(11008, 32, 0, torch.bfloat16, numerics, spec)
    for neurons, layers in ((11008, 32), (1003, 4)):
        buffer = MaskBuffer(neurons, 0, torch.zeros(layers), torch.zeros((8, layers), dtype=torch.uint8))
        counters = DeviceCounters(buffer, Immediate(), 2)  # type: ignore[arg-type]
        tiles, slots = torch.zeros((1, 3), dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        counters.allocate()
        count_kernel.add_counts(buffer.masks, tiles, counters.counts)
        yield f"counts {neurons}"
        count_kernel.add_packed(buffer.masks, tiles, counters.packed)
        yield f"packed {neurons}"
        count_kernel.flush_packed(counters.packed, counters.counts, slots)
        yield f"flush {neurons}"
    for ids, weights in ((torch.int32, torch.float32), (torch.int64, torch.bfloat16), (torch.uint32, torch.float16)):
        for logits in (None, torch.zeros((8, 60))):
            routes = RouteBuffer(4, torch.zeros(24, dtype=torch.int64), torch.zeros((8, 24), dtype=torch.uint8))
            launch_topk(routes, 3, torch.zeros((8, 4), dtype=ids), torch.zeros((8, 4), dtype=weights), 1.5, logits)
            yield f"topk {str(ids)[6:]} {str(weights)[6:]}" + ("" if logits is None else " logits")


def compiled_in_steps(stand_in: Driver) -> int:
    """Count prompts and decode steps; return how many kernels are compiled after the counters are made."""
    buffer = MaskBuffer(176, 0, torch.zeros(3), torch.zeros((600, 3), dtype=torch.uint8))
    counters = DeviceCounters(buffer, Immediate(), 2)  # type: ignore[arg-type]
    counters.allocate()
    before = len(stand_in.kernels)
    slots = counters.take(2)
    for lengths in ((300, 1), (64, 16), *((1, 1),) * 300):
        counters.add_rows(np.array([0, lengths[0]]), np.array(lengths), slots)
    counters.send(int(slots[0]), lambda *_: None)
    assert len(set(stand_in.launched)) == before == 3, "all three kernels run"
    return len(stand_in.kernels) - before


def layouts(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield tensors of a shape: aligned to 16 bytes or not, with several strides."""
    rows, columns = shape
    wide = torch.zeros((rows + 1, 4 * columns + 16), dtype=dtype)
    yield torch.zeros(shape, dtype=dtype)
    yield wide[1:, :columns]
    yield wide[:rows, 1 : columns + 1]
    yield wide[:rows, : 2 * columns : 2]
    yield torch.zeros(rows * columns + 1, dtype=dtype)[1:].view(shape)
    yield wide.flatten()[: rows * columns].view(columns, rows).t()


def compare_launches(stand_in: Driver) -> int:
    """Launch each case with the kernels kept so far, through the JIT alone, and with what it made. Return the cases."""
    cases: list[tuple[MaskBuffer | RouteBuffer, Any]] = []
    for top_k, dtype in ((0, torch.bfloat16), (0, torch.float32), (2, torch.bfloat16)):
        buffer = MaskBuffer(176, top_k, torch.zeros(4, dtype=torch.int64), torch.zeros((32, 4), dtype=torch.uint8))
        for rows, numerics in itertools.product((2, 16), (Numerics.INDUCTOR, None)):
            for gate_up, index in itertools.product(layouts((rows, 352), dtype), torch.arange(2)):
                out = None if numerics is None else next(layouts((rows, 176), dtype))
                launch = functools.partial(gated_activation, gate_up, index, buffer, SILU, numerics, out)
                cases.append((buffer, launch))
    routes = RouteBuffer(4, torch.zeros(24, dtype=torch.int64), torch.zeros((32, 24), dtype=torch.uint8))
    for rows, ids, scale in itertools.product((1, 16), (torch.int32, torch.int64), (1, 2.5)):
        few = (None, torch.zeros((rows, 60)))
        for weights, logits in itertools.product(layouts((rows, 4), torch.float32), few):
            chosen = torch.zeros((rows, 4), dtype=ids)
            cases.append((routes, functools.partial(launch_topk, routes, rows, chosen, weights, scale, logits)))
    for buffer, launch in cases:
        seen = []
        kept = buffer.kernels
        for buffer.kernels in (kept, {}, kept):
            launch()
            seen.append((stand_in.launched[-1], stand_in.arguments))
        assert seen[0] == seen[1] == seen[2], seen
        assert len(kept) > 0
    return len(cases)


def main(capabilities: list[str]) -> None:
    stand_in = Driver()
    driver.set_active(stand_in)
    if capabilities == ["launches"]:
        stand_in.capability = 90
        late = compiled_in_steps(stand_in)
        print(json.dumps({"compiled in steps": late, "equal": compare_launches(stand_in)}))  # noqa: T201
        return
    records = []
    for stand_in.capability in map(int, capabilities):
        for case in launch_cases(kinds=stand_in.capability == 90):
            kernel = stand_in.kernels[stand_in.launched[-1]]
            if "cubin" in kernel:
                kernel |= disassembled(kernel.pop("cubin"))
            records.append({"case": case, **kernel})
    print(json.dumps(records))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
