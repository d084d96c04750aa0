"""Measure the host time of kernel launches, without a GPU: `python benchmarks/launch.py`.

The tests' stand-in for the CUDA driver accepts each launch and does nothing. So the time is that of Python and of
Triton's JIT. Prints the median of 5,000 launches in µs.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.ops.activation_kernel import gated_activation
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, RouteBuffer
from sparcom_extractor.capture.ops.topk_kernel import launch_topk

ROWS, NEURONS = 600, 11008


@triton.jit
def trivial(source, target, _count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    tl.store(target + tl.arange(0, BLOCK), tl.load(source + tl.arange(0, BLOCK)))


def microseconds(work: Callable[[], object]) -> float:
    """Return the median time of a call in µs."""
    times = []
    for _ in range(5000):
        start = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def load_driver() -> Any:
    """Return the tests' stand-in for the CUDA driver."""
    path = Path(__file__).parent.parent / "tests/extractor/capture/ops/compiled_kernels.py"
    spec = importlib.util.spec_from_file_location("compiled_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Driver()


def main() -> None:
    stand_in = load_driver()
    stand_in.capability = 90
    stand_in.launcher_cls = lambda *_: lambda *_: None
    driver.set_active(stand_in)
    flags = torch.zeros((ROWS, 32), dtype=torch.uint8)
    masks = MaskBuffer(NEURONS, 0, torch.zeros(32, dtype=torch.int64), flags)
    routes = RouteBuffer(4, torch.zeros(32, dtype=torch.int64), flags)
    gate_up = torch.zeros(ROWS, 2 * NEURONS, dtype=torch.bfloat16)
    out, layer, line = gate_up[:, :NEURONS].contiguous(), torch.tensor(3), torch.zeros(1024)
    ids, weights, logits = torch.zeros((ROWS, 4), dtype=torch.int32), torch.zeros((ROWS, 4)), torch.zeros((ROWS, 60))
    launches: dict[str, tuple[MaskBuffer | RouteBuffer | None, Callable[[], object]]] = {
        "activation": (masks, lambda: gated_activation(gate_up, layer, masks, SILU, Numerics.INDUCTOR, out)),
        "top-k": (routes, lambda: launch_topk(routes, 3, ids, weights, 1.0, logits)),
        "trivial": (None, lambda: trivial[(ROWS, 11)](line, line, 1024, BLOCK=1024, enable_fp_fusion=False)),
    }
    for name, (buffer, launch) in launches.items():

        def through_the_jit(
            buffer: MaskBuffer | RouteBuffer | None = buffer, launch: Callable[[], object] = launch
        ) -> None:
            if buffer is not None:
                buffer.kernels.clear()
            launch()

        through_the_jit()
        kept = "" if buffer is None else f", kept {microseconds(launch):.1f}"
        print(f"Triton {triton.__version__}, {name}: through the JIT {microseconds(through_the_jit):.1f}{kept}")


if __name__ == "__main__":
    main()
