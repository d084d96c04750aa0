"""Random cases of the capture kernels under Triton's interpreter, compared with their CPU references bit for bit.

    TRITON_INTERPRET=1 python interpreted_kernels.py CASES SEED

This is a separate program, because Triton chooses the interpreter at import and other tests need the compiler. The
interpreter lacks libdevice, truncates float32 to bfloat16 and widens subnormal bfloat16 wrongly (Triton 3.9). These
functions are replaced: transcendentals run in float64, rounded once; bfloat16 is converted as integers. Older
interpreters also round `fma` twice (before 3.9) and return NaN from `minimum` and `maximum` of a number and NaN (before
3.8). Compiled kernels do neither: see `test_compiled_kernels.py`.
"""

from __future__ import annotations

import math
import os
import random
import sys
import warnings
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.discovery.activations import ActivationSpec, Kind
from sparcom_extractor.capture.ops import activation_kernel, topk_kernel
from sparcom_extractor.capture.ops.activation_kernel import gated_activation
from sparcom_extractor.capture.ops.activation_reference import (
    FUSED,
    ON_CUDA,
    Numerics,
    activation_output,
    nonfinite_rows,
    pack_signs,
)
from sparcom_extractor.capture.ops.count_kernel import add_counts, add_counts_reference, check_tiles, split_runs
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, RouteBuffer
from sparcom_extractor.capture.ops.topk_kernel import launch_topk
from sparcom_extractor.capture.ops.topk_reference import store_topk

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 8, 9, 63, 64, 65, 176, 257, 1536)
ROWS = (0, 1, 1, 2, 3, 6)


def through_float64(function: Any) -> Any:
    """Apply a function to an interpreted block, which holds its numbers as a NumPy array."""

    def interpreted(x: Any) -> Any:
        with np.errstate(all="ignore"):
            data = np.asarray(function(x.handle.data.astype(np.float64))).astype(np.float32)
        return tl.core.tensor(TensorHandle(data, tl.float32), x.type)

    return interpreted


@triton.jit
def narrow(x, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """Round float32 to the nearest bfloat16, ties to even; the interpreter rounds to float16 correctly."""
    result = x.to(tl.float16)
    if kind == tl.float32:
        result = x
    if kind == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = tl.where(x != x, 0x7FC0, nearest).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return result


@triton.jit
def widen(x):  # type: ignore[no-untyped-def]
    """Widen bfloat16 to float32 by its bits."""
    result = x
    if x.dtype == tl.bfloat16:
        result = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return result.to(tl.float32)


def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Multiply and add float32 in float64, which holds the product, and round."""
    return TensorHandle((x.data.astype(np.float64) * y.data + z.data).astype(np.float32), z.dtype.scalar)


TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
if TRITON < (3, 9):
    InterpreterBuilder.create_fma = fma
if TRITON < (3, 8):
    InterpreterBuilder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    InterpreterBuilder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    warnings.filterwarnings(
        "ignore", "Conversion of an array with ndim > 0", DeprecationWarning
    )  # of NumPy, for Triton
activation_kernel.libdevice = SimpleNamespace(  # type: ignore[attr-defined]
    exp=through_float64(np.exp),
    erf=through_float64(np.vectorize(math.erf, otypes=[np.float64])),
    tanh=through_float64(np.tanh),
)
activation_kernel.narrow, activation_kernel.widen, topk_kernel.widen = narrow, widen, widen


def random_spec(draw: random.Random) -> tuple[ActivationSpec, Numerics | None]:
    """Return a random spec and one of the kernel's numerics for it."""
    numerics: Numerics | None = draw.choice([*ON_CUDA, None])
    kinds: list[Kind] = sorted(FUSED[numerics or Numerics.VLLM_KERNEL])
    kind = draw.choice(kinds)
    layout = draw.choice(["first", "first", "second", "interleaved"])
    number = draw.choice([7.0, 0.3, 1.702])
    match kind:
        case "fatrelu":
            return ActivationSpec(kind, layout, threshold=draw.choice([0.0, 0.01, 1.0, -0.5])), numerics
        case "situ":
            return ActivationSpec(kind, layout, beta=number, linear_beta=draw.choice([None, 4.0, 0.3])), numerics
        case "swiglu_oai":
            return ActivationSpec(kind, layout, limit=number, alpha=1.702, beta=1.0), numerics
        case "swiglu_clamp":
            alpha, beta = draw.choice([(1.0, 0.0), (1.702, 1.0)])
            return ActivationSpec(kind, layout, limit=number, alpha=alpha, beta=beta), numerics
        case _:
            return ActivationSpec(kind, layout), numerics


def random_input(draw: random.Random, dtype: torch.dtype, rows: int, neurons: int) -> torch.Tensor:
    """Return (rows, 2·neurons) with any bits of the dtype or usual values, contiguous or a strided view."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    shape = (rows, 2 * neurons)
    if draw.random() < 0.4:  # any bits: NaN of any payload, infinities, subnormals, both zeros
        integer = torch.int32 if dtype == torch.float32 else torch.int16
        info = torch.iinfo(integer)
        tensor = torch.randint(info.min, info.max, shape, generator=generator, dtype=integer).view(dtype)
    else:
        tensor = (torch.randn(shape, generator=generator) * draw.choice([0.01, 1.0, 5.0, 40.0])).to(dtype)
        odd = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, -1e-40, 6e-8, -6e-8]).to(dtype)
        where = torch.rand(shape, generator=generator) < 0.1
        tensor[where] = odd[torch.randint(len(odd), (int(where.sum()),), generator=generator)]
    match draw.choice(["contiguous", "rows of a wider tensor", "every other column", "transposed"]):
        case "rows of a wider tensor":
            return torch.nn.functional.pad(tensor, (3, 2))[:, 3 : 3 + 2 * neurons]
        case "every other column":
            return tensor.repeat_interleave(2, dim=1)[:, ::2]
        case "transposed":
            return tensor.t().contiguous().t()
    return tensor


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether tensors are equal bit for bit; all NaNs are equal."""
    integer = torch.int32 if one.dtype == torch.float32 else torch.int16
    equal = (one.view(integer) == other.view(integer)) | (one.isnan() & other.isnan())
    return bool(equal.all()) and one.shape == other.shape


def first_difference(spec: ActivationSpec, gate_up: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> str:
    """Return gate, up and both results at the first difference."""
    row, column = ((one != other) & ~(one.isnan() & other.isnan())).nonzero()[0].tolist()
    gate, up = spec.split(gate_up)
    return f"{gate[row, column]} · {up[row, column]}: {one[row, column]} against {other[row, column]}"


def check_activation(draw: random.Random) -> str:
    """Run one random case; return its description."""
    spec, numerics = random_spec(draw)
    dtype, rows, neurons = draw.choice(DTYPES), draw.choice(ROWS), draw.choice(WIDTHS)
    gate_up = random_input(draw, dtype, rows, neurons)
    layers, layer, top_k = 3, draw.randrange(3), draw.choice([None, None, 1, 2, 3, 4, 6])
    before = draw.randrange(256)
    counters = torch.tensor([4, 5, 6])
    nonfinite = torch.zeros((rows + 2, layers), dtype=torch.uint8)
    buffer = MaskBuffer(neurons, top_k or 0, counters, nonfinite)
    masks = buffer.masks.fill_(before)
    out = None if numerics is None or draw.random() < 0.5 else gate_up.new_full((rows, neurons), 7)
    case = f"{spec} as {numerics}, {dtype}, {rows} rows of {neurons}, strides {gate_up.stride()}, top_k {top_k}"

    result = gated_activation(gate_up, torch.tensor(layer), buffer, spec, numerics, out)

    expected = torch.full_like(masks, before)
    for row, packed in enumerate(pack_signs(spec.split(gate_up)[0], spec.active_above)):
        if top_k is None:
            expected[row, layer] = torch.from_numpy(packed)
        else:
            expected[row // top_k, layer, row % top_k] = torch.from_numpy(packed)
    assert torch.equal(masks, expected), f"masks differ: {case}"
    write = (1 << 32) + rows // (top_k or 1)
    assert counters.tolist() == [start + write * (layer == at) for at, start in enumerate((4, 5, 6))], case
    wrong = torch.zeros_like(nonfinite)
    own = ~torch.isfinite(spec.split(gate_up)[0].float()).all(dim=1)
    wrong[np.flatnonzero(own) // (top_k or 1), layer] = 1
    assert torch.equal(nonfinite, wrong), f"nonfinite differ: {case}"
    assert np.array_equal(nonfinite_rows(spec.split(gate_up)[0]), own.numpy()), case
    if numerics is None:
        assert result is None
    else:
        assert result is not None
        assert result.is_contiguous()
        assert out is None or result is out
        expected = activation_output(gate_up, spec, numerics)
        assert same_bits(result, expected), (
            f"output differs: {case}, at {first_difference(spec, gate_up, result, expected)}"
        )
    return f"{spec.kind} {numerics} {dtype}"


def random_ids(draw: random.Random, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Return expert ids as routers and kernels number them: of 64 or 65,535, in 32 or 64 bits; -1 means no expert."""
    ids = torch.randint(0, draw.choice([64, 65535]), shape, generator=generator)
    dtype = draw.choice([torch.int32, torch.int64, torch.uint32])
    if dtype != torch.uint32:
        ids[torch.rand(shape, generator=generator) < 0.1] = -1
    return ids.to(dtype)


def strided(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, contiguous or as a strided view."""
    match draw.choice(["contiguous", "columns of a wider tensor", "every other column", "transposed"]):
        case "columns of a wider tensor":
            return torch.cat([tensor, tensor, tensor], dim=1)[:, tensor.shape[1] : 2 * tensor.shape[1]]
        case "every other column":
            return torch.stack([tensor, tensor], dim=2).flatten(1)[:, ::2]
        case "transposed":
            return tensor.t().contiguous().t()
    return tensor


def check_routes(draw: random.Random) -> str:
    """Run one random case of stored top-k experts: ids and weights of any dtype, layout and bits. Return its
    description."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    rows, top_k, layers, layer = (
        draw.choice([0, 1, 2, 7, 64, 131]),
        draw.choice([1, 2, 4, 6, 8]),
        3,
        draw.randrange(3),
    )
    dtype, scale = draw.choice(DTYPES), draw.choice([1.0, 1.0, 1.5, 2.827, 16.0])
    ids = strided(draw, random_ids(draw, (rows, top_k), generator))
    weights = strided(draw, random_input(draw, dtype, rows, top_k)[:, :top_k])
    logits = draw.choice([None, strided(draw, random_input(draw, draw.choice(DTYPES), rows, draw.choice([4, 33])))])
    found, reference = (
        RouteBuffer(top_k, torch.tensor([4, 5, 6]), torch.zeros((rows + 2, layers), dtype=torch.uint8))
        for _ in range(2)
    )
    case = f"{ids.dtype} {ids.stride()}, {dtype} {weights.stride()}, ({rows}, {top_k}), times {scale}"

    launch_topk(found, layer, ids, weights, scale, logits)

    store_topk(reference, layer, ids, weights, scale, logits)
    wrong = ~torch.isfinite(weights.float() * scale).all(dim=1)
    if logits is not None:
        wrong |= ~torch.isfinite(logits).all(dim=1)
    assert found.nonfinite[:rows, layer].tolist() == wrong.int().tolist(), f"nonfinite are wrong: {case}"
    assert torch.equal(found.nonfinite, reference.nonfinite), f"nonfinite differ: {case}"
    assert torch.equal(found.experts.view(torch.int16), reference.experts.view(torch.int16)), f"experts differ: {case}"
    assert same_bits(found.weights, reference.weights), f"weights differ: {case}"
    assert torch.equal(found.write_counters, reference.write_counters), f"counters differ: {case}"
    expected = [[number % 65536 for number in row] for row in ids.tolist()]
    assert found.experts[:rows, layer].tolist() == expected, f"experts are wrong: {case}"
    return f"routes {ids.dtype} {dtype}"


def check_counts(draw: random.Random) -> None:
    """Run one random case of counting: runs of rows, some sharing a slot, some long, in masks of any bits."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    rows, layers, neurons, slots = draw.choice([1, 9, 130, 300]), draw.choice([1, 2]), draw.choice(WIDTHS), 3
    masks = torch.randint(0, 256, (rows, layers, -(-neurons // 8)), generator=generator, dtype=torch.uint8)
    if draw.random() < 0.3:
        masks.fill_(255)  # the largest counts
    border = sorted(draw.randrange(rows + 1) for _ in range(3))
    length = np.diff([0, *border, rows])
    slot = np.array([draw.randrange(slots) for _ in length])
    tiles = split_runs(np.array([0, *border]), length, slot)
    check_tiles(tiles, rows, slots)
    found = torch.randint(0, 1000, (slots, layers, neurons), generator=generator, dtype=torch.int32)
    expected = found.clone()

    add_counts(masks, torch.from_numpy(tiles), found)

    add_counts_reference(masks, torch.from_numpy(tiles), expected)
    assert torch.equal(found, expected), f"counts differ: {rows} rows, {layers} layers of {neurons}, {tiles.tolist()}"


class Immediate:
    """A transfer queue whose device is the host, without delay."""

    def upload(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values)

    def launch(self, work: Any) -> None:
        work()

    def send(self, parts: Any, deliver: Any) -> None:
        deliver([part.clone() for part in parts], None)


def check_counters(draw: random.Random) -> None:
    """Count steps of split prompts and single rows, with counters freed and taken again, against a plain sum."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    neurons, layers, rows, requests = draw.choice(WIDTHS[:8]), draw.choice([1, 2]), 300, 2
    buffer = MaskBuffer(neurons, 0, torch.zeros(layers), torch.zeros((rows, layers), dtype=torch.uint8))
    counters = DeviceCounters(buffer, Immediate(), requests)  # type: ignore[arg-type]
    counters.allocate()
    slots = counters.take(requests)
    expected = np.zeros((requests, layers, neurons), dtype=np.int64)
    for step in range(draw.randrange(20, 60)):
        lengths = [draw.choice([1, 1, 1, 2, 63, 64, 65]) for _ in range(requests)]
        if step == 5:
            counters.give_back(int(slots[0]))
            slots[0] = counters.take(1)[0]
            expected[0] = 0
        buffer.masks.random_(0, 256, generator=generator)
        if draw.random() < 0.8:
            buffer.masks.fill_(255)  # the largest counts
        first = np.cumsum([0, *lengths])[:-1]
        counters.add_rows(first, np.array(lengths), slots)
        bits = np.unpackbits(buffer.masks.numpy(), axis=-1, bitorder="little")[..., :neurons]
        for request, (start, length) in enumerate(zip(first, lengths, strict=True)):
            expected[request] += bits[start : start + length].sum(axis=0, dtype=np.int64)
    found: list[Any] = []
    for request, slot in enumerate(slots.tolist()):
        counters.send(slot, lambda parts, _: found.append(parts[0].numpy()))
        assert np.array_equal(found.pop(), expected[request]), f"{neurons} neurons, {layers} layers"


def check_full_tile() -> None:
    """Count the longest tile of ones, which exceeds an 8-bit counter by one."""
    counts = torch.zeros((1, 1, 9), dtype=torch.int32)
    tiles = split_runs(np.array([0]), np.array([256]), np.array([0]))
    add_counts(torch.full((256, 1, 2), 255, dtype=torch.uint8), torch.from_numpy(tiles), counts)
    assert counts.tolist() == [[[256] * 9]], f"counts of a full tile: {counts.tolist()}"


def main(cases: int, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  (tests, no secrets)
    with np.errstate(all="ignore"):
        seen = {check_activation(draw) for _ in range(cases)}
        for _ in range(cases // 20):
            check_counts(draw)
        for _ in range(cases // 200):
            check_counters(draw)
        routes = {check_routes(draw) for _ in range(cases // 10)}
    check_full_tile()
    assert len(routes) > 5 or cases < 1000, f"cases must reach all types: {routes}"
    agreed = f"{cases} cases agree, {cases // 20} of counts and {cases // 10} of routes"
    print(f"seed {seed}: {agreed}; {len(seen)} combinations of kind, numerics and type")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
