"""The machine code that each supported Triton makes of the kernels, without a GPU: for H100 with the installed one, for
A100, H100 and B200 with the others."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PROGRAM = Path(__file__).with_name("compiled_kernels.py")
LIMITS = {  # most registers per thread and instructions, a few percent above what the three versions of Triton need
    "activation silu vllm_kernel 16": (50, 420),
    "activation silu inductor 16": (54, 345),
    "activation silu None 16": (32, 150),
    "activation silu vllm_kernel 32": (48, 450),
    "activation silu inductor 32": (48, 380),
    "activation silu None 32": (32, 200),
    "activation narrow": (50, 620),  # rows of 1,003 neurons: each thread loads its numbers one by one
    "activation other": (58, 750),
    "counts": (36, 340),
    "packed": (28, 220),
    "flush": (32, 160),
    "topk": (36, 145),
    "topk logits": (58, 680),
}
MAX_LOAD_DISTANCE = 16  # instructions between the load of gate and of up, so that a thread waits for memory once


class Compiled(NamedTuple):
    """Machine code of one launch: see `compiled_kernels.py`."""

    case: str
    capability: int
    registers: int
    stack: int
    local: int
    sass: list[str]
    ptx: str

    @property
    def group(self) -> str:
        """Name of its row of LIMITS."""
        kernel, *words = self.case.split()
        if kernel != "activation":
            return f"{kernel} logits" if "logits" in words else kernel
        kind, numerics, dtype, width = words
        if width.startswith("1003x"):
            return "activation narrow"
        return f"activation silu {numerics} {dtype[-2:]}" if kind == "silu" else "activation other"

    def at(self, *names: str) -> list[int]:
        """Return the indices of instructions that start with one of the names."""
        return [index for index, name in enumerate(self.sass) if name.startswith(names)]


@functools.cache
def _compile(paths: str, *capabilities: str) -> list[Compiled]:
    """Compile for the paths of PYTHONPATH."""
    return [Compiled(**record) for record in run(os.environ | {"PYTHONPATH": paths}, *capabilities)]


def run(environment: dict[str, str], *arguments: str) -> Any:
    """Run the program; return what it prints as JSON."""
    command = [sys.executable, str(PROGRAM), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def compiled(triton_environment: dict[str, str]) -> list[Compiled]:
    paths = triton_environment.get("PYTHONPATH", "")
    return _compile(paths, *(("80", "90", "100") if "triton" in paths else ("90",)))


@pytest.fixture
def wide(compiled: list[Compiled]) -> list[Compiled]:
    """Return activation kernels of 16-bit rows that start at multiples of 16 bytes, gate and up apart."""
    every = [item for item in compiled if item.case.startswith("activation") and "float32" not in item.case]
    return [item for item in every if "1003x" not in item.case and "swiglu_oai" not in item.case]


def test_kernels_fit_their_budgets_with_each_triton(compiled: list[Compiled]) -> None:
    """No kernel spills or uses the stack, and all stay within their numbers of registers and instructions."""
    assert {item.group for item in compiled} == set(LIMITS)
    for item in compiled:
        assert (item.stack, item.local) == (0, 0), (item.case, item.capability)
        assert not item.at("LDL", "STL"), (item.case, item.capability)
        needed = (item.registers, len(item.sass))
        assert all(n <= most for n, most in zip(needed, LIMITS[item.group], strict=True)), (item[:2], needed)


def test_rows_move_in_16_bytes_per_thread_with_each_triton(wide: list[Compiled]) -> None:
    """For 16-bit rows, a thread loads 16 bytes of gate and of up and stores 16 bytes, one mask byte and one flag.
    Threads exchange nothing."""
    assert len(wide) > 40
    for item in wide:
        signs = " None " in item.case
        loads = [item.sass[at] for at in item.at("LDG")]
        assert sorted(loads) == sorted(["LDG.E.64"] * 2 + ["LDG.E.128"] * (1 if signs else 2)), item[:2]
        stores = [item.sass[at] for at in item.at("STG")]
        assert sorted(stores) == sorted(["STG.E.U8"] * 2 + ["STG.E.64"] + ["STG.E.128"] * (not signs)), item[:2]
        assert not item.at("BAR", "SHFL", "LDS", "STS", "ATOM", "RED"), item[:2]


def test_both_loads_precede_the_first_store_with_each_triton(
    wide: list[Compiled], triton_environment: dict[str, str]
) -> None:
    """A store might alias, so a later load would wait behind it. From Triton 3.8 on the loads are also close together;
    the assembler of 3.6 delays the second load in some kernels, whatever the source's order."""
    before_38 = "triton/3.6" in triton_environment.get("PYTHONPATH", "")
    for item in wide:
        loads = item.at("LDG.E.128")
        assert max(loads) < min(item.at("STG")), item[:2]
        assert before_38 or max(loads) - min(loads) <= MAX_LOAD_DISTANCE, (item[:2], loads)


def test_compiled_arithmetic_is_that_of_the_references_with_each_triton(compiled: list[Compiled]) -> None:
    """Compiled kernels fuse `fma`, and their minimum of a number and NaN is the number. Older interpreters do
    neither."""
    for kind, eight in (("gelu_tanh", r"fma\.rn\.(?:ftz\.)?f32"), ("swiglu_oai", r"min\.(?:bf16|f32)")):
        found = [item for item in compiled if f" {kind} " in item.case]
        assert found
        for item in found:
            assert len(re.findall(eight, item.ptx)) >= 8, item[:2]
            assert not re.findall(r"(?:min|max)\.NaN", item.ptx), item[:2]


def test_top_k_is_stored_in_one_launch_with_each_triton(compiled: list[Compiled]) -> None:
    """A thread stores two 16-bit ids at once, two weights at once, two flags and, in one thread, the write counter.
    Logits, read in the same launch, add eight flags."""
    for item in compiled:
        if item.case.startswith("topk"):
            flags = 2 + 8 * ("logits" in item.case)
            expected = ["b32", "v2.b32", *["b8"] * flags, "b64"]
            assert sorted(re.findall(r"st\.global\.(\S+)", item.ptx)) == sorted(expected), item[:2]
            assert "ftz" not in item.ptx


def test_counts_are_added_without_waiting_with_each_triton(compiled: list[Compiled]) -> None:
    """Atomic additions are reductions, which return nothing, so that no thread waits for them. A thread makes eight of
    them per mask byte, but two to packed counters; a flush makes none."""
    for item in compiled:
        if item.case.startswith(("counts", "packed", "flush")):
            assert not item.at("ATOM"), item[:2]
            assert len(re.findall(r"(?:red|atom)\.\S*add", item.ptx)) == {"c": 8, "p": 2, "f": 0}[item.case[0]], item[
                :2
            ]


def test_kept_kernels_are_those_of_the_jit_with_each_triton(triton_environment: dict[str, str]) -> None:
    """A launch of kept machine code equals one through the JIT, in code, grid and arguments, for any order of dtypes,
    strides and alignments. All counting kernels are compiled when the counters are made, none in a step."""
    found = run(triton_environment, "launches")
    assert found["equal"] > 200
    assert found["compiled in steps"] == 0
