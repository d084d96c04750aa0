# ruff: noqa: N803  (Triton's constants are capitals)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel that stores the top-k experts of one layer in one launch.

    1. A program takes a block of (row, choice) and reads each id and weight once, whatever their dtypes and strides.
    2. It stores the id as uint16, and the weight in float32 times the model's scale.
    3. It flags rows with a nonfinite weight or router logit by a plain store.
    4. The first program adds the write to the layer's write counter.

It allocates nothing, reads nothing on the host and compiles once for all layers and numbers of rows, so that it runs in
CUDA graphs. Its CPU reference is in `RouteBuffer`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparcom_extractor.capture.ops.activation_kernel import DEVICE

_BLOCK = 256  # (row, choice) per program
_LOGITS = 1024  # (row, expert) per program


@triton.jit(do_not_specialize=["rows", "layer"])
def _store_topk_kernel(
    ids, weights, experts, stored, write_counters, nonfinite, logits,
    rows, layer, scale, id_row, id_choice, weight_row, weight_choice, row_stride, flag_stride,
    logit_row, logit_expert, num_experts,
    TOP_K: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, choice = index // TOP_K, index % TOP_K
    inside = row < rows
    target = row * row_stride + layer.to(tl.int64) * TOP_K + choice

    expert = tl.load(ids + row * id_row + choice * id_choice, mask=inside, other=0)
    tl.store(experts + target, expert.to(tl.uint16), mask=inside)
    weight = WIDEN(tl.load(weights + row * weight_row + choice * weight_choice, mask=inside, other=0.0)) * scale
    tl.store(stored + target, weight, mask=inside)
    exponent = weight.to(tl.int32, bitcast=True) & 0x7F800000
    one = tl.full((BLOCK,), 1, dtype=tl.uint8)
    tl.store(nonfinite + row * flag_stride + layer, one, mask=inside & (exponent == 0x7F800000))

    if LOGITS > 0:
        index = tl.program_id(0).to(tl.int64) * LOGITS + tl.arange(0, LOGITS)
        row, expert = index // num_experts, index % num_experts
        logit = WIDEN(tl.load(logits + row * logit_row + expert * logit_expert, mask=row < rows, other=0.0))
        exponent = logit.to(tl.int32, bitcast=True) & 0x7F800000
        one = tl.full((LOGITS,), 1, dtype=tl.uint8)
        tl.store(nonfinite + row * flag_stride + layer, one, mask=(row < rows) & (exponent == 0x7F800000))

    if tl.program_id(0) == 0:
        tl.store(write_counters + layer, tl.load(write_counters + layer) + (1 << 32) + rows.to(tl.int64))


def store_topk(
    layer: int,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    scale: float,
    experts: torch.Tensor,
    stored: torch.Tensor,
    write_counters: torch.Tensor,
    nonfinite: torch.Tensor,
    logits: torch.Tensor | None = None,
    widen: Any = DEVICE["WIDEN"],
) -> None:
    """Store the top-k experts of a step on the current stream without waiting. The caller has checked the shapes.

    Args:
        layer: index on the layer axis.
        topk_ids: integers (rows, top_k). topk_weights: float32, bfloat16 or float16, likewise. Any strides.
        scale: factor of all weights.
        experts, stored: uint16 and float32 (max_tokens, layers, top_k), contiguous; rows [0, rows) are written.
        write_counters: int64 (layers,). nonfinite: uint8 (max_tokens, layers), columns contiguous.
        logits: of the router (rows, experts), any strides, or None.
        widen: converts a block to float32; Triton's interpreter needs another one.
    """
    rows, top_k = topk_ids.shape
    read = topk_weights if logits is None else logits
    programs = max(1, triton.cdiv(rows * top_k, _BLOCK), 0 if logits is None else triton.cdiv(read.numel(), _LOGITS))
    strides = (*topk_ids.stride(), *topk_weights.stride(), experts.stride(0), nonfinite.stride(0))
    _store_topk_kernel[(programs,)](
        *(topk_ids, topk_weights, experts, stored, write_counters, nonfinite, read),
        *(rows, layer, scale, *strides, *read.stride(), read.shape[1]),
        TOP_K=top_k,
        WIDEN=widen,
        BLOCK=_BLOCK,
        LOGITS=0 if logits is None else _LOGITS,
        enable_fp_fusion=False,  # nothing to fuse; Triton 3.9 warns if unset
    )
