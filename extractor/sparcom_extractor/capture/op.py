"""The custom op that takes the signs of the gate projection, and the buffer it writes to.

    gate_up (rows, 2·neurons) ──sparcom::capture_gate──▶ masks[:rows, layer, :]   neuron i is bit i % 8 of byte i // 8

The op is opaque to torch.compile. It says that it mutates `gate_up`, which it does not: an op without a result would
be removed from a compiled graph as dead code, and the activation that reads `gate_up` next keeps this one alive and in
its place. The buffer hides behind a number that the graph holds as a constant, as vLLM's attention hides its cache
behind a layer's name; passed as an argument it could be cloned, hundreds of megabytes a layer.

It does not know requests or tokens: rows are rows of a step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_LIBRARY = torch.library.Library("sparcom", "FRAGMENT")  # type: ignore[no-untyped-call]
_LAYERS: list[tuple[CaptureBuffer, int]] = []


class CaptureBuffer:
    """Masks of one step, at a fixed address.

    masks: uint8 (max_tokens, layers, neuron_bytes), on the model's device. Rows past the step's tokens are stale.
    stamps: int64 (layers,), how often each layer has written. All must move together: a layer that was left out of a
    step (a graph compiled without capture, a path that bypasses the activation) is found, never read as zeros.
    """

    def __init__(self, max_tokens: int, layers: int, neurons: int, device: torch.device) -> None:
        self.neurons = neurons
        self.masks = torch.zeros((max_tokens, layers, -(-neurons // 8)), dtype=torch.uint8, device=device)
        self.stamps = torch.zeros(layers, dtype=torch.int64, device=device)
        self._host_masks = self.masks.numpy() if device.type == "cpu" else None
        self._last_stamp = 0

    def register(self, layer: int) -> int:
        """The handle by which the op finds this buffer and layer."""
        _LAYERS.append((self, layer))
        return len(_LAYERS) - 1

    def store(self, layer: int, gate_up: torch.Tensor) -> None:
        """Pack the signs of the gate half of `gate_up`, (rows, 2·neurons), into rows [0, rows) of `layer`."""
        rows = gate_up.shape[0]
        if rows > self.masks.shape[0]:
            raise RuntimeError(
                f"a step may hold {self.masks.shape[0]} tokens (max_num_batched_tokens); layer {layer} got {rows}"
            )
        if gate_up.shape[1:] != (2 * self.neurons,):
            raise RuntimeError(
                f"a gated activation takes (rows, {2 * self.neurons}) here; layer {layer} got {tuple(gate_up.shape)}"
            )
        gate = gate_up[:, : self.neurons]
        if self._host_masks is not None:
            self._host_masks[:rows, layer] = pack_signs_numpy(gate)
        else:
            self.masks[:rows, layer] = pack_signs_torch(gate)
        self.stamps[layer] += 1

    def check_step(self) -> None:
        """Hold that every layer wrote since the last call, and all equally often.

        Raises:
            RuntimeError: a layer was left out.
        """
        stamps = self.stamps.cpu().numpy()
        expected = int(stamps.max(initial=0))
        if expected <= self._last_stamp or (stamps != expected).any():
            behind = np.flatnonzero(stamps < max(expected, self._last_stamp + 1)).tolist()
            raise RuntimeError(
                f"every captured layer must write in every step; layers {behind} of the layer axis did not. "
                "The engine ran a path around the captured activation: report the model and vLLM version"
            )
        self._last_stamp = expected

    def rows(self, count: int) -> NDArray[np.uint8]:
        """Rows [0, count) on the host: uint8 (count, layers, neuron_bytes); on CPU a view, changed by the next step."""
        if self._host_masks is not None:
            return self._host_masks[:count]
        return np.asarray(self.masks[:count].cpu().numpy())


def pack_signs_numpy(gate: torch.Tensor) -> NDArray[np.uint8]:
    """Bits of gate > 0 for a CPU tensor (rows, neurons): uint8 (rows, ⌈neurons / 8⌉), little bit order.

    NaN and -0.0 are not active. float32 goes through NumPy, which packs twice as fast here; NumPy has no bfloat16.
    """
    active = gate.numpy() > 0 if gate.dtype == torch.float32 else (gate > 0).numpy()
    return np.packbits(active, axis=-1, bitorder="little")


def pack_signs_torch(gate: torch.Tensor) -> torch.Tensor:
    """The same in torch operations, for any device and without waiting for it."""
    rows, neurons = gate.shape
    active = torch.nn.functional.pad((gate > 0).to(torch.uint8), (0, -neurons % 8))
    bit = torch.arange(8, dtype=torch.uint8, device=gate.device)  # made there: a copy from the host would wait
    return (active.reshape(rows, -(-neurons // 8), 8) << bit).sum(dim=-1, dtype=torch.uint8)


def _capture_gate(gate_up: torch.Tensor, handle: int) -> None:
    buffer, layer = _LAYERS[handle]
    buffer.store(layer, gate_up)


def _capture_gate_fake(gate_up: torch.Tensor, handle: int) -> None:  # noqa: ARG001  the op's signature
    return None


_LIBRARY.define("capture_gate(Tensor(a!) gate_up, int handle) -> ()")  # type: ignore[no-untyped-call]
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("capture_gate", _capture_gate, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("sparcom::capture_gate", _capture_gate_fake, lib=_LIBRARY)


class CapturedActivation(torch.nn.Module):
    """Stands in for the activation of one FFN: takes the signs of its input, then calls it.

    One a layer, so that models which share one activation module among all layers are told apart.
    """

    def __init__(self, activation: torch.nn.Module, handle: int) -> None:
        super().__init__()
        self.activation = activation
        self.handle = handle

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`gate_up` (rows, 2·neurons), gate first; returns what the activation returns, (rows, neurons)."""
        torch.ops.sparcom.capture_gate(gate_up, self.handle)
        result: torch.Tensor = self.activation(gate_up)
        return result
