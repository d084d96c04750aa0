"""Custom ops that replace a gated activation and capture the signs of its gate.

    gate_up (rows, 2·neurons) ──sparcom::gated_activation──▶ f(gate)·g(up) (rows, neurons)
                                         └──▶ masks[:rows, layer], write_counters[layer], nonfinite[:rows, layer]

Leading dimensions of `gate_up` are rows: vLLM's Transformers backend has a batch of 1. The CPU packs with NumPy and
calls vLLM's module; CUDA runs one kernel.

The op is opaque to torch.compile. Its result is used, so it is not removed as dead code. The buffer hides behind a
number that the graph holds as a constant, as vLLM's attention hides its cache behind a layer's name: as an argument
that is mutated it could be cloned, hundreds of megabytes per layer. The layer is a tensor, not a constant, so that all
layers share one graph, compiled once.

`sparcom::capture_signs` captures alone; the model's own activation runs beside it. It claims to mutate `gate_up`, which
it does not: an op without a result would be removed, and so it also stays before the activation that reads `gate_up`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import ActivationSpec, spec_of
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer


class LayerCapture:
    """One captured layer.

    buffer, layer: where its masks go. activation: what computes its output if the kernel does not. spec: see
    `ActivationSpec`. numerics: what the kernel's activation output must equal, or None for signs alone.
    index: the layer as int64 tensor on the device.
    """

    def __init__(
        self,
        buffer: MaskBuffer,
        layer: int,
        activation: Callable[..., Any],
        spec: ActivationSpec,
        numerics: Numerics | None = None,
    ) -> None:
        """
        Raises:
            UnsupportedModelError: another layer of the buffer has another spec or numerics. On CUDA the op does not
                know its layer on the host and launches one kernel for all.
        """
        self.buffer, self.layer, self.activation = buffer, layer, activation
        self.spec, self.numerics = spec, numerics
        if not 0 <= layer < (layers := buffer.masks.shape[1]):
            raise ValueError(f"the layer axis has {layers} layers; there is no layer {layer}")
        registered = _LAYERS.setdefault(buffer.number, WeakValueDictionary())
        for other in registered.values():
            if (spec, numerics) != (other.spec, other.numerics):
                raise UnsupportedModelError(
                    f"capture needs one activation in all layers; this model has {other.spec}, numerics "
                    f"{other.numerics}, and {spec}, numerics {numerics}. Use another model"
                )
        self.index = torch.tensor(layer, dtype=torch.int64, device=buffer.masks.device)
        registered[layer] = self


# By number of the buffer and by layer. A graph that outlives its model finds nothing.
_LAYERS: dict[int, WeakValueDictionary[int, LayerCapture]] = {}


def _find(buffer: int, layer: int | None = None) -> LayerCapture:
    """Return a captured layer of a buffer. Without a layer any one does: buffer, spec and numerics are the same."""
    registered = _LAYERS.get(buffer, WeakValueDictionary())
    found = next(registered.values(), None) if layer is None else registered.get(layer)
    if found is None:
        raise RuntimeError(
            f"a captured graph writes to a buffer that lives; buffer {buffer} is gone. Keep the model as long as the "
            "graph"
        )
    return found


def run_kernel(
    capture: LayerCapture,
    gate_up: torch.Tensor,
    index: torch.Tensor,
    numerics: Numerics | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Capture on CUDA; see `activation_kernel.gated_activation`. Return None without numerics, or if nothing fits."""
    from sparcom_extractor.capture.ops.activation_kernel import gated_activation  # needs Triton

    buffer = capture.buffer
    if not buffer.fits(gate_up):
        return None
    arrays = (buffer.masks, buffer.write_counters, buffer.nonfinite)
    return gated_activation(gate_up, index, *arrays, capture.spec, numerics, out=out)


def _gated_activation_cpu(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:
    _capture_signs_cpu(gate_up, layer, buffer)
    result: torch.Tensor = _find(buffer, int(layer)).activation(gate_up)
    return result


def _gated_activation_cuda(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:
    capture = _find(buffer)
    result = run_kernel(capture, gate_up.flatten(0, -2), layer, capture.numerics)
    if result is None:  # it does not fit, which the write counters show
        result = capture.activation(gate_up)
    return result.view(*gate_up.shape[:-1], -1)


def _gated_activation_fake(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> torch.Tensor:  # noqa: ARG001
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _capture_signs_cpu(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> None:
    capture = _find(buffer, int(layer))
    capture.buffer.store(capture.layer, gate_up.flatten(0, -2), capture.spec)


def _capture_signs_cuda(gate_up: torch.Tensor, layer: torch.Tensor, buffer: int) -> None:
    run_kernel(_find(buffer), gate_up.flatten(0, -2), layer, None)


_LIBRARY: Any = torch.library.Library("sparcom", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("gated_activation(Tensor gate_up, Tensor layer, int buffer) -> Tensor")
_LIBRARY.define("capture_signs(Tensor(a!) gate_up, Tensor layer, int buffer) -> ()")
_LIBRARY.impl("gated_activation", _gated_activation_cpu, "CPU")
_LIBRARY.impl("gated_activation", _gated_activation_cuda, "CUDA")
_LIBRARY.impl("capture_signs", _capture_signs_cpu, "CPU")
_LIBRARY.impl("capture_signs", _capture_signs_cuda, "CUDA")
torch.library.register_fake("sparcom::gated_activation", _gated_activation_fake, lib=_LIBRARY)
torch.library.register_fake("sparcom::capture_signs", lambda gate_up, layer, buffer: None, lib=_LIBRARY)  # noqa: ARG005


class CapturedActivation(torch.nn.Module):
    """Replaces the activation of one FFN. Models that share one activation module among layers get one per layer."""

    layer: torch.Tensor

    def __init__(
        self, activation: torch.nn.Module, buffer: MaskBuffer, layer: int, numerics: Numerics | None = None
    ) -> None:
        """
        Args:
            activation: vLLM's module.
            buffer, layer: where the signs go.
            numerics: on CUDA, what the kernel's activation output must equal. None: the signs are captured beside
                `activation`, which is always right and reads the gate twice.

        Raises:
            UnsupportedModelError: the activation is not supported, or differs from another layer's.
        """
        super().__init__()
        if (spec := spec_of(activation)) is None:
            raise UnsupportedModelError(
                f"capture supports vLLM's gated activations; {type(activation).__name__} is none of them. Use another "
                "model"
            )
        self.activation = activation
        self.capture = LayerCapture(buffer, layer, activation, spec, numerics)
        self.number = buffer.number
        self.fused = buffer.masks.device.type == "cpu" or numerics is not None
        self.register_buffer("layer", self.capture.index, persistent=False)

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return the activation output (…, rows, neurons) of `gate_up` (…, rows, 2·neurons)."""
        result: torch.Tensor
        if self.fused:
            result = torch.ops.sparcom.gated_activation(gate_up, self.layer, self.number)
        else:
            torch.ops.sparcom.capture_signs(gate_up, self.layer, self.number)
            result = self.activation(gate_up)
        return result
