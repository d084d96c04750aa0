"""The gates of chosen experts on a CPU, where vLLM runs all experts of a layer in one native call.

That call shows no gates, so they are computed a second time, from the very weights that it uses. It packs the fused
projection of each expert, (2·neurons, hidden), into panels of 16 neurons, (panels, hidden, 16); the gate's are the
first half. As a view of the packed weights they can be multiplied with directly, so that capture keeps no copy of them:

    rows of the tokens that chose expert e  (n, hidden) @ (panels, hidden, 16) ─▶ bits (n, panels × 16)

float32 goes through machine code of our own (`panel_kernel.py`), twice as fast as torch here; other types through
torch. How the packing works is not assumed: it is held against vLLM's own packing of random numbers when the model is
loaded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema import mask_bytes
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.cores import run_shares

PANEL = 16  # neurons
FEW_PRODUCTS = 20_000_000  # below this, some 0.3 ms, handing work to other threads takes as long as the work


class PanelGate:
    """The gates of one layer's experts.

    Args:
        packed: both projections of all experts as vLLM packs them, (experts, 2·padded, hidden).
        neurons: width of one expert; what is padded behind it has weights of 0.
        bias: (experts, 2·padded), or None.
        above: a neuron is active where its gate is above this.
    """

    def __init__(
        self, packed: torch.Tensor, neurons: int, bias: torch.Tensor | None = None, above: float = 0.0
    ) -> None:
        experts, double, hidden = packed.shape
        self._half = double // 2
        panels = packed.detach().view(experts, double // PANEL, hidden, PANEL)
        self._panels = panels[:, : self._half // PANEL]
        self._bias = None if bias is None else bias.detach()[:, : self._half]
        self._biases = np.zeros((1, self._half), dtype=np.float32)
        if self._bias is not None:
            self._biases = np.ascontiguousarray(self._bias.float().numpy())
        self._bytes, self._above, self._neurons = mask_bytes(neurons), above, neurons

    @classmethod
    def of(cls, layer: MoeLayer, experts: Any) -> PanelGate:
        """That of a layer whose experts vLLM runs natively.

        Raises:
            UnsupportedModelError: this version of vLLM packs weights in another way.
        """
        packed = layer.runner.routed_experts.w13_weight
        check_packing(packed, experts.isa)
        return cls(packed, layer.neurons_here, experts.w1_bias, layer.rule.active_above)

    def masks(self, rows: torch.Tensor, ids: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Which neurons of the chosen experts are active.

        Args:
            rows: the input of the experts, (rows, hidden). ids: the chosen experts, (rows, choices).

        Returns:
            uint8 (rows × choices, neuron_bytes), little bit order, in the order of the ids; and bool (rows × choices,),
            whether a gate is NaN or infinite.
        """
        chosen = ids.reshape(-1).numpy()
        places = np.argsort(chosen, kind="stable")
        experts, first = np.unique(chosen[places], return_index=True)
        borders = np.append(first, len(chosen))
        if rows.dtype == torch.float32 and self._panels.dtype == torch.float32:
            return self._fast(rows, places, borders, experts.astype(np.int64), ids.shape[1])
        packed = np.empty((len(chosen), self._bytes), dtype=np.uint8)
        nonfinite = np.zeros(len(chosen), dtype=np.bool_)
        for expert, start, stop in zip(experts.tolist(), borders[:-1], borders[1:], strict=True):
            own = places[start:stop]
            packed[own], nonfinite[own] = self._of_expert(expert, rows[torch.from_numpy(own // ids.shape[1])])
        return packed, nonfinite

    def _fast(
        self,
        rows: torch.Tensor,
        places: NDArray[np.int64],
        borders: NDArray[np.int64],
        experts: NDArray[np.int64],
        choices: int,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        from sparcom_extractor.capture.ops.panel_kernel import PANELS, pack_gates

        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        count, hidden = self._panels.shape[1:3]
        out = np.empty((len(places), count), dtype=np.uint16)
        nonfinite = np.zeros(len(places), dtype=np.bool_)  # set by any thread that finds one
        call = partial(
            pack_gates,
            rows.data_ptr(),
            rows.stride(0) * 4,
            self._panels.data_ptr(),
            self._panels.stride(0) * 4,
            self._panels.stride(1) * 4,
            hidden,
            self._biases,
            places,
            borders,
            experts,
            choices,
            self._above,
        )
        if len(places) * count * hidden * PANEL < FEW_PRODUCTS:
            call(0, count, out, nonfinite)
        else:
            run_shares(lambda first, stop: call(first, stop, out, nonfinite), count, PANELS)
        return out.view(np.uint8)[:, : self._bytes], nonfinite

    def _of_expert(self, expert: int, rows: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        gates = torch.matmul(rows[None], self._panels[expert])  # (panels, rows, 16)
        if self._bias is not None:
            gates += self._bias[expert].view(-1, 1, PANEL)
        active = (gates > self._above).numpy()
        bits = np.packbits(active, axis=-1, bitorder="little")  # (panels, rows, 2)
        mask: NDArray[np.uint8] = bits.transpose(1, 0, 2).reshape(len(rows), -1)[:, : self._bytes]
        nonfinite: NDArray[np.bool_] = (~torch.isfinite(gates)).any(dim=2).any(dim=0).numpy()
        return mask, nonfinite


def check_packing(packed: torch.Tensor, isa: str) -> None:
    """Hold that vLLM packs weights into panels, with random numbers.

    Args:
        packed: the weights of all experts, (experts, 2·padded, hidden).
        isa: the instruction set that they were packed for.

    Raises:
        UnsupportedModelError: it does not, or the weights do not lie as its packing leaves them.
    """
    _, double, hidden = packed.shape
    if double % (4 * PANEL) or not packed.is_contiguous() or not _packs_into_panels(packed.dtype, hidden, isa):
        raise UnsupportedModelError(
            f"this release knows experts packed into panels of {PANEL} neurons; this vLLM packs {double} rows of "
            f"{hidden} for {isa!r} in another way. Use vLLM 0.32, or a GPU"
        )


def _packs_into_panels(dtype: torch.dtype, hidden: int, isa: str) -> bool:
    from vllm._custom_ops import cpu_prepack_moe_weight

    numbers = torch.rand((1, 4 * PANEL, hidden), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = numbers.view(4, PANEL, hidden).transpose(1, 2)
    return torch.equal(cpu_prepack_moe_weight(numbers, isa).reshape(4, hidden, PANEL), expected)
