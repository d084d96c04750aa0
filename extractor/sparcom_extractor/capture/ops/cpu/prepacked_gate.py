"""Gates of the top-k experts on a CPU, where vLLM runs all experts of a layer in one native call.

That call does not expose gates. oneDNN computes them a second time, from a float32 copy of the gate weights in its own
layout. The copy is a third of the experts' weights (docs/decisions/0019-cpu-gates-onednn.md).

vLLM prepacks each expert's fused projection, (2·padded, hidden), into (2·padded / 16, hidden, 16), with the gate in
the first half. Loading a model checks this layout by packing random numbers with vLLM's own function.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema import mask_bytes
from sparcom_extractor.capture.ops.cpu.kernel import pack_rows
from sparcom_extractor.vllm_surface.moe import prepack_moe_weight

PACKED_ROWS = 16  # rows that vLLM packs together
_BATCH = 64  # rows per expert for which oneDNN chooses its layout


class PrepackedGate:
    """Computes the gates of one layer's experts; refuses weights in an unknown layout.
    packed: both projections of all experts (experts, 2·padded, hidden), packed for `isa`. bias: (experts, 2·padded)."""

    def __init__(
        self, packed: Tensor, neurons: int, isa: str, bias: Tensor | None = None, active_above: float = 0.0
    ) -> None:
        check_packing(packed, isa)
        _, double, hidden = packed.shape
        self._width, self._neurons, self._active_above = double // 2, neurons, active_above
        half = packed.detach()[:, : double // 2].view(len(packed), -1, hidden, PACKED_ROWS)
        self._weights = [
            torch.ops.mkldnn._reorder_linear_weight(expert.mT.reshape(-1, hidden).float(), _BATCH) for expert in half
        ]
        self._biases = [None] * len(packed) if bias is None else list(bias.detach()[:, : double // 2].float())

    def masks(self, rows: Tensor, ids: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Compute the signs of the gates of rows (rows, hidden) for the experts `ids` (rows, top_k).

        Return uint8 (rows × top_k, neuron_bytes), in the order of the ids, and flags (rows × top_k,), 1 if nonfinite.
        """
        experts = ids.reshape(-1).numpy()
        order = np.argsort(experts, kind="stable")
        inputs = rows.float()[torch.from_numpy(order // ids.shape[1])]
        parts = torch.split(inputs, np.bincount(experts, minlength=len(self._weights)).tolist())
        # One product per expert; all else once, because each small parallel operation waits for all threads.
        products = [inputs.new_empty((0, self._width))]
        for part, weight, bias in zip(parts, self._weights, self._biases, strict=True):
            if len(part):
                products.append(torch.ops.mkldnn._linear_pointwise(part, weight, bias, "none", [], ""))
        gates = torch.cat(products)[:, : self._neurons]
        masks = np.empty((len(experts), mask_bytes(self._neurons)), np.uint8)
        nonfinite = np.zeros(len(experts), np.uint8)
        pack_rows(gates, self._active_above, masks, nonfinite)
        places = np.argsort(order)
        return masks[places], nonfinite[places]


def check_packing(packed: Tensor, isa: str) -> None:
    """Refuse weights (experts, 2·padded, hidden) that are not packed as expected. Packs random numbers to find out."""
    _, double, hidden = packed.shape
    numbers = torch.rand((1, 4 * PACKED_ROWS, hidden), generator=torch.Generator().manual_seed(0)).to(packed.dtype)
    expected = numbers.view(4, PACKED_ROWS, hidden).mT
    if (
        double % (4 * PACKED_ROWS)
        or not packed.is_contiguous()
        or not torch.equal(prepack_moe_weight(numbers, isa).reshape(4, hidden, PACKED_ROWS), expected)
    ):
        raise UnsupportedModelError(
            f"this release supports expert weights packed by {PACKED_ROWS} rows; this vLLM packs {double} rows of "
            f"{hidden} for {isa!r} in another way. Use vLLM 0.32, or a GPU"
        )
