# ruff: noqa: N803  (Triton's constants are capitals)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""Triton kernel that stores the top-k experts of one layer in one launch. It compiles once for all layers and rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparcom_extractor.capture.ops.activation_kernel import aligned, launch, widen
from sparcom_extractor.capture.ops.step_buffers import RouteBuffer

_BLOCK = 256  # pairs (row, k) per program
_LOGITS = 1024  # pairs (row, expert) per program


@triton.jit(do_not_specialize=["rows", "layer"])
def _store_topk_kernel(
    ids, weights, experts, stored, write_counters, nonfinite, logits,
    rows, layer, scale, id_row, id_k, weight_row, weight_k, row_stride, flag_stride,
    logit_row, logit_expert, num_experts,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, k = index // TOP_K, index % TOP_K
    inside = row < rows
    target = row * row_stride + layer.to(tl.int64) * TOP_K + k

    expert = tl.load(ids + row * id_row + k * id_k, mask=inside, other=0)
    tl.store(experts + target, expert.to(tl.uint16), mask=inside)
    weight = widen(tl.load(weights + row * weight_row + k * weight_k, mask=inside, other=0.0)) * scale
    tl.store(stored + target, weight, mask=inside)
    exponent = weight.to(tl.int32, bitcast=True) & 0x7F800000
    one = tl.full((BLOCK,), 1, dtype=tl.uint8)
    tl.store(nonfinite + row * flag_stride + layer, one, mask=inside & (exponent == 0x7F800000))

    if LOGITS > 0:
        index = tl.program_id(0).to(tl.int64) * LOGITS + tl.arange(0, LOGITS)
        row, expert = index // num_experts, index % num_experts
        logit = widen(tl.load(logits + row * logit_row + expert * logit_expert, mask=row < rows, other=0.0))
        exponent = logit.to(tl.int32, bitcast=True) & 0x7F800000
        one = tl.full((LOGITS,), 1, dtype=tl.uint8)
        tl.store(nonfinite + row * flag_stride + layer, one, mask=(row < rows) & (exponent == 0x7F800000))

    if tl.program_id(0) == 0:
        tl.store(write_counters + layer, tl.load(write_counters + layer) + (1 << 32) + rows.to(tl.int64))


def launch_topk(
    routes: RouteBuffer, layer: int, ids: Tensor, weights: Tensor, scale: float, logits: Tensor | None
) -> None:
    """Run `store_topk` on a device, after its checks of shapes. Takes any strides."""
    rows, top_k = ids.shape
    read = weights if logits is None else logits
    programs = max(1, -(-rows * top_k // _BLOCK), 0 if logits is None else -(-read.numel() // _LOGITS))
    strides = (*ids.stride(), *weights.stride(), routes.experts.stride(0), routes.nonfinite.stride(0), *read.stride())
    others = (scale, *strides, read.shape[1], top_k, _BLOCK, 0 if logits is None else _LOGITS)
    launch(
        _store_topk_kernel,
        routes.kernels,
        (ids.dtype, weights.dtype, read.dtype, others, aligned(ids, weights, read)),
        (programs, 1, 1),
        (ids, weights, routes.experts, routes.weights, routes.write_counters, routes.nonfinite, read, rows, layer),
        lambda: (others, {"enable_fp_fusion": False}),  # nothing to fuse; Triton 3.9 warns if unset
    )
