# ruff: noqa: N803  (Triton's constants are capitals, to be told from what a device holds)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel that stores the routes of one layer.

One launch a layer, in place of a conversion, two copies, a multiplication and an addition:

    1. a program takes a block of (row, choice), reads the id and the weight once, whatever their types and strides;
    2. the id as uint16, and the weight in float32 times the model's factor, go to the layer's place of the row;
    3. the first program moves the layer's stamp.

It allocates nothing, reads nothing on the host and compiles once for all layers and numbers of rows, so that it runs in
CUDA graphs. Its twin is `RouteBuffer`'s own way on the CPU. It does not know routers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparcom_extractor.capture.kernels import DEVICE

_BLOCK = 256  # (row, choice) of a program


@triton.jit(do_not_specialize=["rows", "layer"])
def _store_routes_kernel(
    ids, weights, experts, stored, stamps,
    rows, layer, scale, id_row, id_choice, weight_row, weight_choice, row_stride,
    CHOICES: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, choice = place // CHOICES, place % CHOICES
    there = row < rows
    target = row * row_stride + layer.to(tl.int64) * CHOICES + choice

    expert = tl.load(ids + row * id_row + choice * id_choice, mask=there, other=0)
    tl.store(experts + target, expert.to(tl.uint16), mask=there)
    weight = WIDEN(tl.load(weights + row * weight_row + choice * weight_choice, mask=there, other=0.0))
    tl.store(stored + target, weight * scale, mask=there)

    if tl.program_id(0) == 0:
        tl.store(stamps + layer, tl.load(stamps + layer) + 1)


def store_routes(
    layer: int,
    ids: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
    experts: torch.Tensor,
    stored: torch.Tensor,
    stamps: torch.Tensor,
    widen: Any = DEVICE.widen,
) -> None:
    """Store the routes of a step's rows, on the current stream and without waiting; the caller has checked the shapes.

    Args:
        layer: its place on the layer axis.
        ids: integers (rows, choices); weights: float32, bfloat16 or float16 (rows, choices); any strides.
        scale: the factor of all weights.
        experts: uint16 (max_tokens, layers, choices), contiguous; stored: float32, likewise. Rows [0, rows) of the
            layer are written.
        stamps: int64 (layers,).
        widen: makes float32 of a block of weights; a test hands in another, for Triton's interpreter.
    """
    rows, choices = ids.shape
    _store_routes_kernel[(max(1, triton.cdiv(rows * choices, _BLOCK)),)](
        ids,
        weights,
        experts,
        stored,
        stamps,
        rows,
        layer,
        scale,
        ids.stride(0),
        ids.stride(1),
        weights.stride(0),
        weights.stride(1),
        experts.stride(0),
        CHOICES=choices,
        WIDEN=widen,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,  # nothing to fuse; Triton 3.9 warns of the choice left open
    )
