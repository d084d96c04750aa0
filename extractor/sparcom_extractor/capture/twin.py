"""The signs and the product of a gated activation in plain NumPy and PyTorch: the CPU's way, and the kernels' twin.

It does not know buffers, layers or devices.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def pack_signs_numpy(gate: torch.Tensor, threshold: float = 0.0) -> NDArray[np.uint8]:
    """Bits of gate > threshold for a CPU tensor (rows, neurons): uint8 (rows, ⌈neurons / 8⌉), little bit order.

    NaN and -0.0 are not active. float32 goes through NumPy, which packs twice as fast here; NumPy has no bfloat16.
    A threshold is compared in float32, as vLLM's activations do it: torch would round it to bfloat16 first.
    """
    if threshold:
        active = gate.float().numpy() > np.float32(threshold)
    else:
        active = gate.numpy() > 0 if gate.dtype == torch.float32 else (gate > 0).numpy()
    return np.packbits(active, axis=-1, bitorder="little")


def pack_signs_torch(gate: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The same in torch operations, for any device and without waiting for it."""
    rows, neurons = gate.shape
    active = torch.nn.functional.pad((gate.float() > threshold).to(torch.uint8), (0, -neurons % 8))
    bit = torch.arange(8, dtype=torch.uint8, device=gate.device)  # made there: a copy from the host would wait
    return (active.reshape(rows, -(-neurons // 8), 8) << bit).sum(dim=-1, dtype=torch.uint8)
