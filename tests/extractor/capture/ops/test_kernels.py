"""The kernels equal their CPU references bit for bit, and their GPU code is as expected, without a GPU."""

from __future__ import annotations

import importlib.util
import re
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec
from sparcom_extractor.capture.ops.activation_reference import ON_CUDA, Numerics, activation_output
from sparcom_extractor.capture.ops.count_kernel import add_counts_reference, check_tiles, split_runs
from sparcom_extractor.writer.counting import count_neurons

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


def test_kernels_equal_their_cpu_references_with_each_triton(triton_environment: dict[str, str]) -> None:
    """1,000 new cases per run in Triton's interpreter give the same bits in outputs, masks, write counters and
    counts."""
    seed = secrets.randbelow(2**31)
    environment = triton_environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(INTERPRETED), "1000", str(seed)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, f"seed {seed}: {ran.stderr}"
    assert f"seed {seed}: 1000 cases agree, 50 of counts and 100 of routes" in ran.stdout
    assert int(re.search(r"(\d+) combinations", ran.stdout)[1]) > 45, "cases must reach all kinds"  # type: ignore[index]


@pytest.mark.parametrize("numerics", ON_CUDA)
@pytest.mark.parametrize(
    ("spec", "function"),
    [
        (ActivationSpec("silu"), torch.nn.functional.silu),
        (ActivationSpec("gelu"), torch.nn.functional.gelu),
        (ActivationSpec("gelu_tanh"), lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        (ActivationSpec("fatrelu", threshold=0.5), lambda x: torch.nn.functional.threshold(x, 0.5, 0.0)),
    ],
)
def test_the_reference_is_the_activation(spec: ActivationSpec, function: Any, numerics: Any) -> None:
    """The reference's float32 output equals PyTorch's except for rounding, so kernel and reference are not both
    wrong."""
    gate_up = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 3
    gate, up = spec.split(gate_up)
    torch.testing.assert_close(activation_output(gate_up, spec, numerics), function(gate) * up, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        (
            ActivationSpec("swiglu_clamp", limit=2.0, alpha=1.7, beta=1.0),
            lambda g, u: g.clamp(max=2) * torch.sigmoid(1.7 * g.clamp(max=2)) * (u.clamp(-2, 2) + 1),
        ),
        (
            ActivationSpec("swiglu_oai", "interleaved", limit=2.0, alpha=1.7, beta=1.0),
            lambda g, u: g.clamp(max=2) * torch.sigmoid(1.7 * g.clamp(max=2)) * (u.clamp(-2, 2) + 1),
        ),
        (
            ActivationSpec("situ", beta=2.0, linear_beta=3.0),
            lambda g, u: 2 * torch.tanh(g / 2) * torch.sigmoid(g) * 3 * torch.tanh(u / 3),
        ),
    ],
)
def test_the_reference_is_the_rarer_activation(spec: ActivationSpec, reference: Any) -> None:
    """Activations with parameters match their formulas."""
    gate_up = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 3
    gate, up = spec.split(gate_up)
    torch.testing.assert_close(
        activation_output(gate_up, spec, Numerics.VLLM_KERNEL), reference(gate, up), rtol=2e-6, atol=1e-5
    )


def ptx_of(
    kernel: Any,
    constants: dict[str, Any],
    pointers: dict[str, str],
    capability: int,
    unaligned: tuple[str, ...] = (),
    **options: Any,
) -> str:
    """Return the PTX that Triton compiles a kernel to, for aligned arguments and sizes. Needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    others = {*constants, *unaligned, "rows", "scale"}
    aligned = [at for at, name in enumerate(kernel.arg_names) if name not in others]
    attributes = {(at,): [["tt.divisibility", 16]] for at in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    return str(triton.compile(source, target=target, options={"num_warps": 4, **options}).asm["ptx"])


def compiled_for_a_gpu(numerics: Any, dtype: str, spec: ActivationSpec = SILU) -> str:
    """Return the PTX of the activation kernel."""
    from sparcom_extractor.capture.ops import activation_kernel

    constants = {
        **activation_kernel.constants(spec, numerics),
        "BLOCK": 1024,
        "TOP_K": 1,
        "column_stride": 2 if spec.layout == "interleaved" else 1,
        "gate_offset": 0,
    }
    pointers = {"gate_up": f"*{dtype}", "out": f"*{dtype}", "masks": "*u8", "write_counters": "*i64", "layer": "*i64"}
    pointers["nonfinite"] = "*u8"
    options = activation_kernel.compiler_options(numerics)
    return ptx_of(activation_kernel._gated_activation_kernel, constants, pointers, 90, **options)


def arithmetic(ptx: str) -> Counter[str]:
    """Count each floating-point instruction, without the comparison that makes the masks."""
    found = re.findall(
        r"^\s+((?:fma|mul|add|sub|div|neg|ex2|rcp|abs|copysign|cvt)\.\S*f(?:32|16)\S*)", ptx, re.MULTILINE
    )
    return Counter(found)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "fatrelu"])
def test_the_gpu_code_has_the_arithmetic_of_inductors(kind: Any, dtype: str) -> None:
    """The instructions and their counts equal those in the code that TorchInductor 2.13 generates, with its options."""
    from sparcom_extractor.capture.ops import activation_kernel

    inductor = load_inductors_kernels()
    constants = {"KIND": kind, "XBLOCK": 1024}
    theirs = ptx_of(inductor, constants, {"in_ptr0": f"*{dtype}", "out_ptr0": f"*{dtype}"}, 90, enable_fp_fusion=True)
    spec = ActivationSpec(kind, threshold=0.01 if kind == "fatrelu" else 0.0)
    assert "ftz" in theirs or kind == "fatrelu"
    assert arithmetic(compiled_for_a_gpu(Numerics.INDUCTOR, dtype, spec=spec)) == arithmetic(theirs)
    assert activation_kernel.compiler_options(Numerics.INDUCTOR)["enable_fp_fusion"]


def load_inductors_kernels() -> Any:
    """Load `inductor_kernels.py` from this folder."""
    path = Path(__file__).with_name("inductor_kernels.py")
    spec = importlib.util.spec_from_file_location("inductor_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.inductors_kernel


@pytest.mark.parametrize(
    ("numerics", "division"), [(Numerics.VLLM_KERNEL, "div.rn.f32"), (Numerics.INDUCTOR, "div.full.f32")]
)
def test_the_gpu_code_rounds_like_the_code_it_replaces(numerics: Numerics, division: str) -> None:
    """nvcc rounds division to nearest, TorchInductor uses Triton's division. Only nvcc keeps subnormals in e^x, and
    only vLLM's kernel rounds f to 16 bits before the product."""
    ptx = compiled_for_a_gpu(numerics, "bf16")
    assert set(re.findall(r"div\.\S+", ptx)) == {division}
    assert ("fma.rn.ftz" in ptx) == (numerics == Numerics.INDUCTOR)
    assert ("cvt.rn.bf16.f32" in ptx) == (numerics == Numerics.VLLM_KERNEL)


def plain_counts(masks: np.ndarray[Any, Any], neurons: int) -> np.ndarray[Any, Any]:
    return np.unpackbits(masks, axis=-1, bitorder="little")[..., :neurons].sum(axis=0, dtype=np.uint32)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(0, 600), layers=st.integers(1, 3), neurons=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_counting_on_the_host_is_the_plain_sum(rows: int, layers: int, neurons: int, seed: int) -> None:
    """Adding bit planes equals unpacking and adding, for any number of rows and on views, in place."""
    draw = np.random.default_rng(seed)
    wide = draw.integers(0, 256, (rows, layers + 1, -(-neurons // 8)), dtype=np.uint8)
    masks = wide[:, 1:]  # rows are not contiguous
    counts = draw.integers(0, 1000, (layers, neurons), dtype=np.uint32)
    expected = counts + plain_counts(masks, neurons)
    count_neurons(masks, counts)
    assert np.array_equal(counts, expected)


def test_many_full_rows_do_not_overflow() -> None:
    """70,000 rows of ones count 70,000, past the range of 8 and 16 bits."""
    counts = np.zeros((1, 9), dtype=np.uint32)
    count_neurons(np.full((70_000, 1, 2), 255, dtype=np.uint8), counts)
    assert counts.tolist() == [[70_000] * 9]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 900), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_tiles_are_the_runs(lengths: list[int], seed: int) -> None:
    """Tiles cover the rows of every run once, for its slot, at most 256 rows each; counting tiles counts the runs."""
    rows = np.array(lengths, dtype=np.int64)
    first = np.cumsum(rows) - rows
    slot = np.random.default_rng(seed).integers(0, 3, len(rows))
    tiles = split_runs(first, rows, slot)
    assert tiles.dtype == np.int32
    assert (tiles[:, 1] <= 256).all()
    check_tiles(tiles, int(rows.sum()), 3)
    covered = [(row, s) for start, count, s in tiles.tolist() for row in range(start, start + count)]
    assert covered == [(row, s) for f, n, s in zip(first, rows, slot, strict=True) for row in range(f, f + n)]

    masks = np.random.default_rng(seed).integers(0, 256, (int(rows.sum()), 1, 2), dtype=np.uint8)
    counts = torch.zeros((3, 1, 11), dtype=torch.int32)
    add_counts_reference(torch.from_numpy(masks), torch.from_numpy(tiles), counts)
    for number in range(3):
        mine = np.concatenate(
            [masks[f : f + n] for f, n, s in zip(first, rows, slot, strict=True) if s == number] or [masks[:0]]
        )
        assert np.array_equal(counts[number].numpy(), plain_counts(mine, 11))


@pytest.mark.parametrize("tile", [(-1, 2, 0), (9, 2, 0), (0, 0, 0), (0, 257, 0), (0, 1, 3), (0, 1, -1)], ids=str)
def test_a_tile_outside_is_refused(tile: tuple[int, int, int]) -> None:
    """A device would silently read and write past its arrays, so the host refuses and names the tile."""
    tiles = np.array([(0, 2, 1), tile], dtype=np.int32)
    with pytest.raises(ValueError, match=re.escape(f"one is {list(tile)}")):
        check_tiles(tiles, 10 if tile[1] < 257 else 300, 3)


@pytest.mark.parametrize(
    ("neurons", "block"),
    [
        (11008, 1024),
        (14336, 1024),
        (5632, 1024),
        (1003, 1024),
        (1408, 512),
        (1376, 512),
        (768, 256),
        (704, 256),
        (176, 256),
    ],
)
def test_blocks_fit_narrow_layers(neurons: int, block: int) -> None:
    """At least 85 % of the threads have neurons, in widths of real models; blocks of 1,024 left 31 % idle at 1,408."""
    from sparcom_extractor.capture.ops.activation_kernel import block_size

    assert block_size(neurons) == block
    assert neurons <= 256 or neurons / (-(-neurons // block) * block) >= 0.85
