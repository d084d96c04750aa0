"""The custom op that stands in for a gated activation and takes the signs of its gate on the way.

    gate_up (rows, 2·neurons) ──sparcom::gated_activation──▶ f(gate)·g(up) (rows, neurons)
                                         └──▶ masks[:rows, layer, :], writes[layer] and flags[:rows, layer] of a
                                              CaptureBuffer

`gate_up` may have further leading dimensions, which are rows: vLLM's Transformers backend has a batch of 1.

The op is opaque to torch.compile. It returns what the model goes on with, so that no compiler drops it as dead code,
and it writes the masks unseen: the buffer hides behind a number that the graph holds as a constant, as vLLM's
attention hides its cache behind a layer's name. Passed as an argument it could be cloned, hundreds of megabytes a
layer. The layer is a tensor on the device and no constant, so that the graphs of all layers are one, compiled once.

`sparcom::capture_signs` takes the signs alone and leaves the product to the model's own activation beside it. It says
that it mutates `gate_up`, which it does not: an op without a result would be removed, and the activation that reads
`gate_up` next keeps this one alive and in its place.

What each device does: the CPU packs with NumPy and calls the module that vLLM would have called; CUDA runs one kernel.

    install_capture (install.py) ──▶ CapturedActivation, one a layer ──▶ op ──▶ CaptureBuffer
"""

from __future__ import annotations

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import rule_of
from sparcom_extractor.capture.ops.buffer import CaptureBuffer, Slot
from sparcom_extractor.capture.ops.reference import Rounding, pack_signs_numpy, pack_signs_torch

__all__ = ["CaptureBuffer", "CapturedActivation", "Slot", "pack_signs_numpy", "pack_signs_torch"]

_LIBRARY = torch.library.Library("sparcom", "FRAGMENT")  # type: ignore[no-untyped-call]


def _gated_activation_cpu(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:
    index, target = int(layer), CaptureBuffer.find(buffer)
    target.store(index, gate_up.flatten(0, -2))
    result: torch.Tensor = target.activations[index](gate_up)
    return result


def _gated_activation_cuda(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:
    target = CaptureBuffer.find(buffer)
    result = run_kernel(gate_up.flatten(0, -2), layer, target)
    if result is None:  # it does not fit, which the write counters tell
        result = next(iter(target.activations.values()))(gate_up)
    return result.view(*gate_up.shape[:-1], -1)


def _gated_activation_fake(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:  # noqa: ARG001
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _capture_signs_cpu(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> None:
    CaptureBuffer.find(buffer).store(int(layer), gate_up.flatten(0, -2))


def _capture_signs_cuda(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> None:
    run_kernel(gate_up.flatten(0, -2), layer, CaptureBuffer.find(buffer), signs_only=True)


def _capture_signs_fake(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> None:  # noqa: ARG001
    return None


def run_kernel(
    gate_up: torch.Tensor,
    layer: torch.Tensor,
    target: CaptureBuffer,
    *,
    signs_only: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """What the ops do on a device, for code that no compiler looks into. out: see `kernels.gated_activation`.

    Returns None where only the signs are taken, and where `gate_up` does not fit the buffer: nothing is written then.
    """
    from sparcom_extractor.capture.ops.kernels import gated_activation  # Triton, which the CPU does without

    if not target.fits(gate_up):
        return None
    rounding = None if signs_only else target.rounding
    return gated_activation(gate_up, layer, target.masks, target.writes, target.flags, target.rule, rounding, out=out)


_LIBRARY.define("gated_activation(Tensor gate_up, Tensor layer, int buffer) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("capture_signs(Tensor(a!) gate_up, Tensor layer, int buffer) -> ()")  # type: ignore[no-untyped-call]
for _name, _function, _device in (
    ("gated_activation", _gated_activation_cpu, "CPU"),
    ("gated_activation", _gated_activation_cuda, "CUDA"),
    ("capture_signs", _capture_signs_cpu, "CPU"),
    ("capture_signs", _capture_signs_cuda, "CUDA"),
):
    _LIBRARY.impl(_name, _function, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("sparcom::gated_activation", _gated_activation_fake, lib=_LIBRARY)
torch.library.register_fake("sparcom::capture_signs", _capture_signs_fake, lib=_LIBRARY)


class CapturedActivation(torch.nn.Module):
    """Stands in for the activation of one FFN.

    One a layer, so that models which share one activation module among all layers are told apart.
    """

    layer: torch.Tensor

    def __init__(self, activation: torch.nn.Module, slot: Slot, rounding: Rounding | None = None) -> None:
        """
        Args:
            activation: the module that vLLM would call.
            slot: the layer of the buffer that the signs go to.
            rounding: on CUDA, whose arithmetic the op's own product follows. None: the signs are taken beside
                `activation`, which is always right and reads the gate twice.

        Raises:
            UnsupportedModelError: the activation is none that capture understands, or differs from another layer's.
        """
        super().__init__()
        rule = rule_of(activation)
        if rule is None:
            raise UnsupportedModelError(
                f"capture understands vLLM's gated activations; {type(activation).__name__} is none of them"
            )
        device = slot.buffer.masks.device
        self.activation = activation
        self.slot = slot
        self.number = slot.buffer.number
        self.fused = device.type == "cpu" or rounding is not None
        slot.buffer.attach(slot.layer, rule, rounding, activation)
        self.register_buffer("layer", torch.tensor(slot.layer, dtype=torch.int64, device=device), persistent=False)

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`gate_up` (…, rows, 2·neurons); returns what the activation returns, (…, rows, neurons)."""
        result: torch.Tensor
        if self.fused:
            result = torch.ops.sparcom.gated_activation(gate_up, self.layer, self.number)
        else:
            torch.ops.sparcom.capture_signs(gate_up, self.layer, self.number)
            result = self.activation(gate_up)
        return result
