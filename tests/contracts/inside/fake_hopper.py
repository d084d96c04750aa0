"""pytest plugin: a machine with Hopper GPUs, as far as vLLM's Python code asks for it. No kernel can run.

vLLM's sources from a GPU wheel, on a CPU build of torch. The wheel's compiled libraries are replaced by the schemas of
their ops, so that vLLM finds every op that the wheel has; calling one raises NotImplementedError. Exceptions are listed
in `_answer`: queries about the device, and the activation kernel.
"""

from __future__ import annotations

import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

CAPABILITY, MEMORY, DEVICES = (9, 0), 80 << 30, 4
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=MEMORY, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    gcnArchName="", uuid="0",
)  # fmt: skip
_LIBRARIES: list[Any] = []  # torch drops the ops of a library that is collected


class Stream:
    """A stream or event; nothing runs on it."""


class SchemaFinder(MetaPathFinder, Loader):
    """Import a compiled module of vLLM as an empty one, and define its ops."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        for folder in path or ():
            schemas = Path(folder) / f"{name.rpartition('.')[2]}.schemas"
            if name.startswith("vllm.") and schemas.is_file():
                return importlib.machinery.ModuleSpec(name, self, origin=str(schemas))
        return None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        namespace = module.__name__.rpartition(".")[2].removesuffix("_stable_libtorch")
        library = torch.library.Library(namespace, "FRAGMENT")
        for schema in Path(str(module.__spec__.origin)).read_text().splitlines():
            library.define(schema)
        _LIBRARIES.append(library)


def _silu_and_mul(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate.float()).to(out.dtype) * up)


def _answer() -> None:
    """Implement the ops that vLLM's Python code asks at import or runs on a CPU tensor in the tests."""
    library = torch.library.Library("_C", "IMPL")
    for name, least in {
        "cutlass_scaled_mm_supports_fp8": 89,
        "cutlass_scaled_mm_supports_block_fp8": 90,
        "cutlass_group_gemm_supported": 90,
        "cutlass_scaled_mm_supports_fp4": 100,
    }.items():
        library.impl(name, lambda capability, least=least: capability >= least, "CompositeExplicitAutograd")
    library.impl("silu_and_mul", _silu_and_mul, "CPU")
    _LIBRARIES.append(library)


def _fake_torch() -> None:
    cuda: Any = torch.cuda
    for name, value in {
        "is_available": True, "device_count": DEVICES, "current_device": 0, "is_initialized": True, "_lazy_init": None,
        "get_device_capability": CAPABILITY, "get_device_properties": PROPERTIES,
        "get_device_name": PROPERTIES.name, "mem_get_info": (MEMORY, MEMORY), "synchronize": None,
    }.items():  # fmt: skip
        setattr(cuda, name, lambda *_, value=value, **__: value)
    cuda.Stream = cuda.Event = Stream


def _fake_platform() -> None:
    from vllm import platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Hopper(NonNvmlCudaPlatform):  # type: ignore[misc]
        """vLLM's CUDA platform with answers in place of a driver's."""

        @classmethod
        def get_device_capability(cls, *_: Any, **__: Any) -> Any:
            return DeviceCapability(*CAPABILITY)

        @classmethod
        def get_device_name(cls, *_: Any, **__: Any) -> str:
            return PROPERTIES.name

        @classmethod
        def get_device_total_memory(cls, *_: Any, **__: Any) -> int:
            return MEMORY

        @classmethod
        def device_count(cls) -> int:
            return DEVICES

        @classmethod
        def is_fully_connected(cls, *_: Any, **__: Any) -> bool:
            return True

        @classmethod
        def is_pin_memory_available(cls) -> bool:
            return False

    platforms._current_platform = Hopper()
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and "PIN_MEMORY" in vars(module):
            vars(module)["PIN_MEMORY"] = False  # 0.24 asked another platform, at import


_fake_torch()
sys.meta_path.insert(0, SchemaFinder())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _fake_platform()
_answer()
