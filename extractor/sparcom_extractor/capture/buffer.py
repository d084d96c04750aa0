"""The buffer that holds the masks of one step, and the check that every layer wrote to it.

It lies at a fixed address on the model's device, because a CUDA graph writes to the addresses it was captured with.
Laid out (token, layer, byte), the rows of a step are one contiguous block in the archive's own order; where a token
goes through several experts, (token, layer, choice, byte). Neuron i is bit i % 8 of byte i // 8.

It does not know requests or tokens: rows are rows of a step. `buffers.py` has all buffers of a model.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema import mask_bytes
from sparcom_extractor.capture.activations import SILU, GatedActivation
from sparcom_extractor.capture.twin import Rounding, pack_signs_numpy


class StampCheck:
    """Holds that every layer wrote in every step: all stamps move, and all equally far.

    A layer that was left out of a step (a graph compiled without capture, a path around the activation) is found,
    never read as zeros.
    """

    def __init__(self) -> None:
        self._last = 0

    def check(self, stamps: NDArray[np.int64]) -> None:
        """Compare a host copy of the stamps, int64 (layers,), with that of the last call.

        Raises:
            RuntimeError: a layer was left out.
        """
        expected = int(stamps.max(initial=0))
        if expected <= self._last or (stamps != expected).any():
            behind = np.flatnonzero(stamps < max(expected, self._last + 1)).tolist()
            raise RuntimeError(
                f"every captured layer must write in every step; layers {behind} of the layer axis did not. "
                "The engine ran a path around the captured activation: report the model and vLLM version"
            )
        self._last = expected


class CaptureBuffer:
    """Masks of one step.

    masks: uint8 (max_tokens, layers, neuron_bytes), on the model's device; with choices (max_tokens, layers, choices,
        neuron_bytes). Rows past the step's tokens are stale.
    choices: experts that a token goes through, 0 where there are none to choose from. A layer's activation then has a
        row for each (token, choice), in that order.
    stamps: int64 (layers,), how often each layer has written; see `StampCheck`.
    rule: how the activations gate that write here; rounding: whose arithmetic the op's product follows on CUDA. Both
        are the same for all layers.
    """

    _numbers: ClassVar[itertools.count[int]] = itertools.count()
    _living: ClassVar[weakref.WeakValueDictionary[int, CaptureBuffer]] = weakref.WeakValueDictionary()

    def __init__(
        self,
        max_tokens: int,
        layers: int,
        neurons: int,
        device: torch.device,
        *,
        choices: int = 0,
        stamps: torch.Tensor | None = None,
    ) -> None:
        """`stamps`: those of this buffer within the stamps of all of a model's buffers; its own where not given."""
        self.neurons = neurons
        self.choices = choices
        row = (layers, choices, mask_bytes(neurons)) if choices else (layers, mask_bytes(neurons))
        self.masks = torch.zeros((max_tokens, *row), dtype=torch.uint8, device=device)
        self.stamps = torch.zeros(layers, dtype=torch.int64, device=device) if stamps is None else stamps
        self.activations: dict[int, torch.nn.Module] = {}
        self.rule = SILU
        self.rounding: Rounding | None = None
        self.number = next(self._numbers)
        self._living[self.number] = self
        self._host_masks = self.masks.numpy() if device.type == "cpu" else None
        self._host_stamps = self.stamps.numpy() if device.type == "cpu" else None
        self._check = StampCheck()

    @classmethod
    def find(cls, number: int) -> CaptureBuffer:
        """The buffer of a number: a compiled graph holds the number as a constant."""
        try:
            return cls._living[number]
        except KeyError:
            raise RuntimeError(
                f"a captured graph writes to a buffer that lives; buffer {number} is gone. "
                "Keep the model's CaptureBuffer as long as the model"
            ) from None

    def register(self, layer: int) -> Slot:
        """The place of one layer, which a `CapturedActivation` is made with."""
        if not 0 <= layer < self.masks.shape[1]:
            raise ValueError(f"the layer axis has {self.masks.shape[1]} layers; there is no layer {layer}")
        return Slot(self, layer)

    def attach(self, layer: int, rule: GatedActivation, rounding: Rounding | None, activation: torch.nn.Module) -> None:
        """Say which activation writes to `layer`, how it gates and how it rounds.

        Raises:
            UnsupportedModelError: another layer's activation gates or rounds differently.
        """
        if self.activations and (rule, rounding) != (self.rule, self.rounding):
            raise UnsupportedModelError(
                f"capture needs one activation in all layers; this model has {self.rule}, rounded as {self.rounding}, "
                f"and {rule}, rounded as {rounding}"
            )
        self.rule, self.rounding = rule, rounding
        self.activations[layer] = activation

    def check_shape(self, gate_up: torch.Tensor) -> None:
        """Hold that `gate_up` is (rows, 2·neurons) and that its rows fit.

        Raises:
            RuntimeError: it is not, or they do not.
        """
        most = self.masks.shape[0] * max(1, self.choices)
        if gate_up.shape[0] > most:
            raise RuntimeError(
                f"a step may hold {most} rows of a layer (max_num_batched_tokens); a captured layer got "
                f"{gate_up.shape[0]}"
            )
        if gate_up.shape[1:] != (2 * self.neurons,):
            raise RuntimeError(
                f"a gated activation takes (rows, {2 * self.neurons}) here; a captured layer got {tuple(gate_up.shape)}"
            )

    def store(self, layer: int, gate_up: torch.Tensor) -> None:
        """Pack the signs of the gate of a CPU tensor `gate_up`, (rows, 2·neurons), into rows [0, rows) of `layer`."""
        self.check_shape(gate_up)
        self.store_packed(layer, pack_signs_numpy(self.rule.gate(gate_up), self.rule.active_above))

    def store_packed(self, layer: int, packed: NDArray[np.uint8]) -> None:
        """Take masks that were made elsewhere: uint8 (rows, neuron_bytes), a row a token or (token, choice)."""
        if self._host_masks is None or self._host_stamps is None:
            raise RuntimeError(f"the host writes to buffers on the CPU; this one is on {self.masks.device}")
        rows = packed.reshape(-1, self.choices, packed.shape[-1]) if self.choices else packed
        self._host_masks[: len(rows), layer] = rows
        self._host_stamps[layer] += 1

    def check_step(self) -> None:
        """Hold that every layer wrote since the last call, and all equally often; waits for the device.

        Raises:
            RuntimeError: a layer was left out.
        """
        self._check.check(self.stamps.cpu().numpy())

    def rows(self, count: int) -> NDArray[np.uint8]:
        """Rows [0, count) on the host: uint8 (count, layers, neuron_bytes); on CPU a view, changed by the next step."""
        if self._host_masks is not None:
            return self._host_masks[:count]
        return np.asarray(self.masks[:count].cpu().numpy())


@dataclass(frozen=True, slots=True)
class Slot:
    """One layer of a buffer."""

    buffer: CaptureBuffer
    layer: int
