"""The buffer that holds the masks of one step, and the check that every layer wrote to it once.

It lies at a fixed address on the model's device, because a CUDA graph writes to the addresses it was captured with.
Laid out (token, layer, byte), the rows of a step are one contiguous block in the archive's own order; where a token
goes through several experts, (token, layer, choice, byte). Neuron i is bit i % 8 of byte i // 8.

It does not know requests or tokens: rows are rows of a step. `buffers.py` has all buffers of a model.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import UnsupportedModelError
from sparcom_data.schema import mask_bytes
from sparcom_extractor.capture.discovery.activations import SILU, GatedActivation
from sparcom_extractor.capture.ops.reference import Rounding, nonfinite_rows, pack_signs_numpy

WRITE = 1 << 32
"""What one write of n rows adds to a layer's write counter, beside n: calls and rows are counted in one number."""


def check_writes(writes: NDArray[np.int64], rows: int, names: Sequence[str], *, padded: bool) -> None:
    """Check that every layer wrote once in a step, and all rows of the step.

    A layer that was left out of a step (a graph compiled without capture, a path around the activation), one that
    ran several times, and one that saw fewer rows are found. Their masks are never read as if they were whole.

    Args:
        writes: int64 (layers,), write counters that were 0 before the step; see `WRITE`.
        rows: of the step.
        names: of the layers, for the error.
        padded: whether a layer may write more rows than the step has, as CUDA graphs of fixed sizes do.

    Raises:
        RuntimeError: a layer wrote never, several times, or other rows.
    """
    calls, written = writes >> 32, writes & (WRITE - 1)
    wrong = (calls != 1) | (written < rows) | ((written > rows) & (not padded))
    if not wrong.any():
        return
    layer = int(wrong.argmax())
    others = f", and {int(wrong.sum()) - 1} more layers are wrong" if wrong.sum() > 1 else ""
    remedy = "The engine ran a path around the captured activation: report the model and vLLM version"
    if calls[layer] > 1:
        remedy = "The model runs a layer several times per token, and an archive has one mask per layer and token"
    raise RuntimeError(
        f"every captured layer must write once in every step, {rows} rows in this one; {names[layer]} wrote "
        f"{int(calls[layer])} times, {int(written[layer])} rows in all{others}. {remedy}"
    )


class CaptureBuffer:
    """Masks of one step.

    masks: uint8 (max_tokens, layers, neuron_bytes), on the model's device; with choices (max_tokens, layers, choices,
        neuron_bytes). Rows past the step's tokens are stale.
    choices: experts that a token goes through, 0 where there are none to choose from. A layer's activation then has a
        row for each (token, choice), in that order.
    writes: int64 (layers,), the write counter of each layer; see `WRITE` and `check_writes`.
    flags: uint8 (max_tokens, layers), 1 where a gate of the row is not finite (any choice's). Whoever reads it clears
        it before the step.
    problem: why a layer could not be captured, or None. The layer's write counter has not moved then.
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
        writes: torch.Tensor | None = None,
        flags: torch.Tensor | None = None,
    ) -> None:
        """`writes`, `flags`: this buffer's part of those of all of a model's buffers; its own where not given."""
        self.neurons = neurons
        self.choices = choices
        row = (layers, choices, mask_bytes(neurons)) if choices else (layers, mask_bytes(neurons))
        self.masks = torch.zeros((max_tokens, *row), dtype=torch.uint8, device=device)
        self.writes = torch.zeros(layers, dtype=torch.int64, device=device) if writes is None else writes
        self.flags = torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device) if flags is None else flags
        self.problem: str | None = None
        self.activations: dict[int, torch.nn.Module] = {}
        self.rule = SILU
        self.rounding: Rounding | None = None
        self.number = next(self._numbers)
        self._living[self.number] = self
        self._host_masks = self.masks.numpy() if device.type == "cpu" else None
        self._host_writes = self.writes.numpy() if device.type == "cpu" else None
        self._host_flags = self.flags.numpy() if device.type == "cpu" else None

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

    def fits(self, gate_up: torch.Tensor) -> bool:
        """Whether `gate_up` is (rows, 2·neurons) and its rows fit; if not, `problem` says why.

        A layer that cannot be captured does not stop the engine: its write counter stays, which ends the jobs of the
        step, and at the start refuses the model.
        """
        most = self.masks.shape[0] * max(1, self.choices)
        if gate_up.shape[1:] != (2 * self.neurons,):
            self.problem = (
                f"a gated activation takes (rows, {2 * self.neurons}) here; a captured layer got {tuple(gate_up.shape)}"
            )
        elif gate_up.shape[0] > most or gate_up.shape[0] % max(1, self.choices):
            self.problem = (
                f"a step may hold {most} rows of a layer (max_num_batched_tokens), {max(1, self.choices)} per token; "
                f"a captured layer got {gate_up.shape[0]}"
            )
        else:
            return True
        return False

    def store(self, layer: int, gate_up: torch.Tensor) -> None:
        """Pack the signs of the gate of a CPU tensor `gate_up`, (rows, 2·neurons), into rows [0, rows) of `layer`."""
        if self.fits(gate_up):
            gate = self.rule.gate(gate_up)
            self.store_packed(layer, pack_signs_numpy(gate, self.rule.active_above), nonfinite_rows(gate))

    def store_packed(self, layer: int, packed: NDArray[np.uint8], nonfinite: NDArray[np.bool_]) -> None:
        """Take masks that were made elsewhere.

        Args:
            layer: of the buffer.
            packed: uint8 (rows, neuron_bytes), one row per token or (token, choice).
            nonfinite: bool (rows,), whether a row has a gate that is not finite.
        """
        if self._host_masks is None or self._host_writes is None or self._host_flags is None:
            raise RuntimeError(f"the host writes to buffers on the CPU; this one is on {self.masks.device}")
        rows = packed.reshape(-1, self.choices, packed.shape[-1]) if self.choices else packed
        self._host_masks[: len(rows), layer] = rows
        if nonfinite.any():
            self._host_flags[np.flatnonzero(nonfinite) // max(1, self.choices), layer] = 1
        self._host_writes[layer] += WRITE + len(rows)

    def check_step(self, rows: int) -> None:
        """Check a step of so many rows as `check_writes` does, and begin anew; waits for the device.

        Raises:
            RuntimeError: a layer did not write once and all rows.
        """
        writes = self.writes.cpu().numpy().copy()
        self.writes.zero_()
        check_writes(writes, rows, [f"layer {n}" for n in range(len(writes))], padded=self.masks.is_cuda)

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
