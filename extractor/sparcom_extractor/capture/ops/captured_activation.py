"""Custom ops that replace a gated activation and capture the signs of its gate.

    gate_up (rows, 2·neurons) ──sparcom::gated_activation──▶ f(gate)·g(up) (rows, neurons)
                                         └──▶ masks[:rows, layer], write_counters[layer], nonfinite[:rows, layer]

The op runs one kernel, or packs and calls vLLM's module (`install` decides). torch.compile does not trace into it. The
graph refers to the buffer by number, as vLLM's attention refers to its KV cache by layer name. A mutated argument could
be cloned, hundreds of megabytes per layer. The layer is a tensor, so all layers share one graph.

`sparcom::capture_signs` only captures; the model's own activation runs separately. Its schema declares a mutation of
`gate_up` that does not happen. Otherwise the compiler would remove an op without a result, or move it after the
activation that reads `gate_up`.

vLLM fuses some activations with the quantization that follows, by the type of the activation module. There capture
leaves that module in place and takes the signs behind the projection (`capture_projection`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import ActivationSpec, GatedFFN
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer

Activation = Callable[..., Any]


class LayerCapture:
    """One captured layer: `layer` indexes the layer axis of `buffer`; `index` is the same as int64 on the device.

    activation: runs where the kernel does not. numerics: the code that the kernel's output must match. None
    captures signs only and runs `activation`: always correct, but reads the gate twice. All layers of a buffer must
    have one spec and numerics: on CUDA the host does not know the layer, so one kernel must serve all.
    """

    def __init__(
        self, buffer: MaskBuffer, layer: int, activation: Activation, spec: ActivationSpec, numerics: Numerics | None
    ) -> None:
        self.buffer, self.layer, self.activation = buffer, layer, activation
        self.spec, self.numerics = spec, numerics
        if not 0 <= layer < (layers := buffer.masks.shape[1]):
            raise ValueError(f"the layer axis has {layers} layers; there is no layer {layer}")
        registered = _LAYERS.setdefault(buffer.number, WeakValueDictionary())
        for other in registered.values():
            if (spec, numerics) != (other.spec, other.numerics):
                raise UnsupportedModelError(
                    f"capture needs one activation in all layers; this model has {other.spec} with numerics "
                    f"{other.numerics}, and {spec} with numerics {numerics}. Use another model"
                )
        self.index = torch.tensor(layer, dtype=torch.int64, device=buffer.masks.device)
        registered[layer] = self

    def run_kernel(self, gate_up: Tensor, index: Tensor, numerics: Numerics | None, out: Tensor | None = None) -> Any:
        """Capture layer `index` on CUDA; see `gated_activation`. Return None without numerics or if rows do not fit."""
        from sparcom_extractor.capture.ops.activation_kernel import gated_activation  # needs Triton

        if not self.buffer.fits(gate_up):
            return None
        return gated_activation(gate_up, index, self.buffer, self.spec, numerics, out)


# By buffer number and layer. Weak, so that a graph that outlives its model finds nothing.
_LAYERS: dict[int, WeakValueDictionary[int, LayerCapture]] = {}


def _find(buffer: int, layer: int | None = None) -> LayerCapture:
    """Return a captured layer of a buffer; without `layer`, any of them: all share buffer, spec and numerics."""
    registered = _LAYERS.get(buffer)
    found = None
    if registered is not None:
        found = next(registered.values(), None) if layer is None else registered.get(layer)
    if found is None:
        raise RuntimeError(f"a captured graph needs its buffer; buffer {buffer} is gone. Keep the model with the graph")
    return found


def _gated_activation(gate_up: Tensor, layer: Tensor, buffer: int) -> Tensor:
    rows = gate_up.flatten(0, -2)
    if gate_up.device.type == "cpu":
        capture = _find(buffer, int(layer))
        result = capture.buffer.store(capture.layer, rows, capture.spec, capture.numerics)
    else:
        capture = _find(buffer)
        result = capture.run_kernel(rows, layer, capture.numerics)
    if result is None:  # no numerics, or rows do not fit, which the write counters reveal
        result = capture.activation(gate_up)
    return result.view(*gate_up.shape[:-1], result.shape[-1])


def _capture_signs(gate_up: Tensor, layer: Tensor, buffer: int) -> None:
    rows = gate_up.flatten(0, -2)
    if gate_up.device.type == "cpu":
        capture = _find(buffer, int(layer))
        capture.buffer.store(capture.layer, rows, capture.spec)
    else:
        _find(buffer).run_kernel(rows, layer, None)


_LIBRARY: Any = torch.library.Library("sparcom", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("gated_activation(Tensor gate_up, Tensor layer, int buffer) -> Tensor")
_LIBRARY.define("capture_signs(Tensor(a!) gate_up, Tensor layer, int buffer) -> ()")
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("gated_activation", _gated_activation, _device)
    _LIBRARY.impl("capture_signs", _capture_signs, _device)
torch.library.register_fake(
    "sparcom::gated_activation", lambda x, *_: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)), lib=_LIBRARY
)
torch.library.register_fake("sparcom::capture_signs", lambda *_: None, lib=_LIBRARY)


class CapturedActivation(torch.nn.Module):
    """Replaces the activation of one FFN, even if layers share one activation module."""

    layer: Tensor

    def __init__(self, capture: LayerCapture) -> None:
        super().__init__()
        self.capture, self.activation, self.number = capture, capture.activation, capture.buffer.number
        self.fused = capture.index.device.type == "cpu" or capture.numerics is not None
        self.register_buffer("layer", capture.index, persistent=False)

    def forward(self, gate_up: Tensor) -> Tensor:
        """Return (…, neurons) for `gate_up` (…, 2·neurons). vLLM's Transformers backend adds a batch dimension of 1."""
        result: Tensor
        if self.fused:
            result = torch.ops.sparcom.gated_activation(gate_up, self.layer, self.number)
        else:
            torch.ops.sparcom.capture_signs(gate_up, self.layer, self.number)
            result = self.activation(gate_up)
        return result


def capture_projection(projection: torch.nn.Module, capture: LayerCapture) -> None:
    """Capture the signs of the output of a fused gate and up projection, (…, 2·neurons), whoever reads it."""

    def hook(module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        gate_up = output[0] if isinstance(output, tuple) else output
        torch.ops.sparcom.capture_signs(gate_up, module.sparcom_layer, number)

    number = capture.buffer.number
    projection.register_buffer("sparcom_layer", capture.index, persistent=False)
    projection.sparcom_capture = capture  # type: ignore[assignment]  # the registry holds it weakly
    projection.register_forward_hook(hook)


class _CalledError(Exception):
    """The activation was called, with `args[0]`."""


class _Probe(torch.nn.Module):
    """Replaces a child of an FFN: returns `output`, or raises `_CalledError` with its input."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, received: Tensor) -> Any:
        if self.output is None:
            raise _CalledError(received)
        return self.output


def feeds_activation(ffn: GatedFFN, projection: torch.nn.Module) -> bool:
    """Return whether an FFN passes the output of `projection` to its activation unchanged. Runs none of its layers."""
    parent, gate_up = ffn.parent, torch.empty(1, 2 * ffn.intermediate_size_per_partition, device="meta")
    names = {child: name for name, child in parent.named_children()}
    stand_in = _Probe((gate_up, None) if getattr(projection, "return_bias", True) else gate_up)
    originals = {names[projection]: projection, ffn.attribute: getattr(parent, ffn.attribute)}
    try:
        for name, child in ((names[projection], stand_in), (ffn.attribute, _Probe())):
            setattr(parent, name, child)
        parent(torch.empty(1, int(projection.input_size), device="meta"))  # type: ignore[arg-type]
    except _CalledError as called:
        return called.args[0] is gate_up
    except Exception:  # noqa: BLE001  an FFN with other arguments, or other code before its activation
        return False
    finally:
        for name, child in originals.items():
            setattr(parent, name, child)
    return False
