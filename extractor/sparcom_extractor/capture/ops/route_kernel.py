# ruff: noqa: N803  (Triton's constants are capitals, to be told from what a device holds)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel that stores the routes of one layer.

One launch a layer, in place of a conversion, two copies, a multiplication and an addition:

    1. a program takes a block of (row, choice), reads the id and the weight once, whatever their types and strides;
    2. the id as uint16, and the weight in float32 times the model's factor, go to the layer's place of the row;
    3. where a weight or a logit of the router is NaN or infinite, the row's flag of the layer is set: a plain store;
    4. the first program moves the layer's write counter by one write of so many rows.

It allocates nothing, reads nothing on the host and compiles once for all layers and numbers of rows, so that it runs in
CUDA graphs. Its twin is `RouteBuffer`'s own way on the CPU. It does not know routers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparcom_extractor.capture.ops.kernels import DEVICE

_BLOCK = 256  # (row, choice) of a program
_LOGITS = 1024  # (row, expert) of a program


@triton.jit(do_not_specialize=["rows", "layer"])
def _store_routes_kernel(
    ids, weights, experts, stored, writes, flags, logits,
    rows, layer, scale, id_row, id_choice, weight_row, weight_choice, row_stride, flag_stride,
    logit_row, logit_expert, logit_experts,
    CHOICES: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, choice = place // CHOICES, place % CHOICES
    there = row < rows
    target = row * row_stride + layer.to(tl.int64) * CHOICES + choice

    expert = tl.load(ids + row * id_row + choice * id_choice, mask=there, other=0)
    tl.store(experts + target, expert.to(tl.uint16), mask=there)
    weight = WIDEN(tl.load(weights + row * weight_row + choice * weight_choice, mask=there, other=0.0)) * scale
    tl.store(stored + target, weight, mask=there)
    exponent = weight.to(tl.int32, bitcast=True) & 0x7F800000
    one = tl.full((BLOCK,), 1, dtype=tl.uint8)
    tl.store(flags + row * flag_stride + layer, one, mask=there & (exponent == 0x7F800000))

    if LOGITS > 0:
        logit_place = tl.program_id(0).to(tl.int64) * LOGITS + tl.arange(0, LOGITS)
        logit_of, expert_of = logit_place // logit_experts, logit_place % logit_experts
        source = logits + logit_of * logit_row + expert_of * logit_expert
        logit = WIDEN(tl.load(source, mask=logit_of < rows, other=0.0))
        exponent = logit.to(tl.int32, bitcast=True) & 0x7F800000
        one = tl.full((LOGITS,), 1, dtype=tl.uint8)
        tl.store(flags + logit_of * flag_stride + layer, one, mask=(logit_of < rows) & (exponent == 0x7F800000))

    if tl.program_id(0) == 0:
        tl.store(writes + layer, tl.load(writes + layer) + (1 << 32) + rows.to(tl.int64))


def store_routes(
    layer: int,
    ids: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
    experts: torch.Tensor,
    stored: torch.Tensor,
    writes: torch.Tensor,
    flags: torch.Tensor,
    logits: torch.Tensor | None = None,
    widen: Any = DEVICE.widen,
) -> None:
    """Store the routes of a step's rows, on the current stream and without waiting; the caller has checked the shapes.

    Args:
        layer: its place on the layer axis.
        ids: integers (rows, choices); weights: float32, bfloat16 or float16 (rows, choices); any strides.
        scale: the factor of all weights.
        experts: uint16 (max_tokens, layers, choices), contiguous; stored: float32, likewise. Rows [0, rows) of the
            layer are written.
        writes: int64 (layers,), write counters. flags: uint8 (max_tokens, layers), columns contiguous.
        logits: of the router, (rows, experts), any strides; None: weights alone are looked at.
        widen: makes float32 of a block of weights; a test hands in another, for Triton's interpreter.
    """
    rows, choices = ids.shape
    numbers = 0 if logits is None else logits.numel()
    looked = weights if logits is None else logits
    _store_routes_kernel[(max(1, triton.cdiv(rows * choices, _BLOCK), triton.cdiv(numbers, _LOGITS)),)](
        ids,
        weights,
        experts,
        stored,
        writes,
        flags,
        looked,
        rows,
        layer,
        scale,
        ids.stride(0),
        ids.stride(1),
        weights.stride(0),
        weights.stride(1),
        experts.stride(0),
        flags.stride(0),
        looked.stride(0),
        looked.stride(1),
        looked.shape[1],
        CHOICES=choices,
        WIDEN=widen,
        BLOCK=_BLOCK,
        LOGITS=0 if logits is None else _LOGITS,
        enable_fp_fusion=False,  # nothing to fuse; Triton 3.9 warns of the choice left open
    )
