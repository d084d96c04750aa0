"""Put a captured activation into every FFN, and decide whether the kernel may make the product itself.

On CUDA the kernel's own product costs no second look at the gate, but the model must say the same with and without
capture. So it is used only where that is known:

    1. from how vLLM would run this very module: bound to `forward_cuda` it is vLLM's kernel, `forward_native` within
       a compiled graph is TorchInductor's code; eager code and activations that no rounding fits are left alone;
    2. no projection of the FFN is quantised: TorchInductor and vLLM fuse an activation with the quantisation that
       follows it, and round differently then;
    3. the kernel's product equals the module's, on this device and with these versions, for every one of the 65,536
       numbers of 16 bits as a gate, each with many ups, and, in float32, for all of those and four million others.

Otherwise the signs are taken beside the module, which stays as it is: right by construction, for one more kernel and
one more read of the gate. On the CPU the op calls the module itself, and there is nothing to decide.

It knows of vLLM only the names of attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sparcom_extractor.capture.activations import GatedActivation, rule_of
from sparcom_extractor.capture.buffer import CaptureBuffer
from sparcom_extractor.capture.discover import GatedFFN
from sparcom_extractor.capture.op import CapturedActivation
from sparcom_extractor.capture.twin import Rounding

_LOG = logging.getLogger("sparcom.capture")
_NEURONS = 2048  # of the comparison's rows: 32 rows hold all gates of 16 bits
_UPS = 64  # of every gate

Compare = Callable[[torch.nn.Module, Rounding, torch.dtype], int]


def install_capture(model: torch.nn.Module, ffns: Sequence[GatedFFN], buffer: CaptureBuffer, dtype: torch.dtype) -> str:
    """Replace the activation of each FFN, layer i of the buffer for the i-th.

    Args:
        model: the model that the FFNs belong to, before it is compiled.
        ffns: from `find_gated_ffns`.
        buffer: of as many layers, on the model's device.
        dtype: of the projections.

    Returns:
        How the product is made: "module" (CPU), "kernel" or "compiled" (by the op), "signs" (beside the op). The
        compiled graph depends on it.
    """
    cuda = buffer.masks.device.type == "cuda"
    rounding = choose_rounding(ffns[0], dtype, compiled=is_compiled(model)) if cuda else None
    for index, ffn in enumerate(ffns):
        captured = CapturedActivation(getattr(ffn.parent, ffn.attribute), buffer.register(index), rounding)
        setattr(ffn.parent, ffn.attribute, captured)
    return rounding or ("signs" if cuda else "module")


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether vLLM compiles the model with TorchInductor: its decorator leaves `do_not_compile` on what it compiles."""
    compiled: list[Any] = [module for module in model.modules() if getattr(module, "do_not_compile", True) is False]
    return any(module.compilation_config.backend != "eager" for module in compiled)


def choose_rounding(
    ffn: GatedFFN, dtype: torch.dtype, *, compiled: bool, compare: Compare | None = None
) -> Rounding | None:
    """Whose arithmetic the kernel follows for an FFN on CUDA, or None where only the signs may be taken.

    `compare` is `count_differences` unless given.
    """
    from triton.errors import TritonError  # type: ignore[import-untyped]

    from sparcom_extractor.capture.kernels import FUSED

    activation = getattr(ffn.parent, ffn.attribute)
    rounding = expected_rounding(activation, compiled=compiled)
    if rounding is None or ffn.rule.kind not in FUSED[rounding] or is_quantised(ffn):
        return None
    try:
        different = (compare or count_differences)(activation, rounding, dtype)
    except (RuntimeError, TritonError) as error:  # one of the two cannot be compiled alone
        _LOG.warning("capture takes signs beside %s: it could not be compared: %s", ffn.rule, error)
        return None
    if different:
        _LOG.warning(
            "capture takes signs beside %s: the kernel's product differs from vLLM's in %d numbers on this device. "
            "Results are the same, a little slower; report it with the versions of torch and vLLM",
            ffn.rule,
            different,
        )
        return None
    return rounding


def expected_rounding(activation: torch.nn.Module, *, compiled: bool) -> Rounding | None:
    """Whose arithmetic vLLM would run `activation` with, from the method that it bound; None: eager code."""
    method = getattr(activation, "_forward_method", None)
    plain = getattr(method, "_torchdynamo_orig_callable", method)  # what torch.compile was given
    name = getattr(plain, "__name__", "")
    if name == "forward_cuda":
        return "kernel"
    if name == "forward_native" and (compiled or plain is not method):
        return "compiled"
    return None


def is_quantised(ffn: GatedFFN) -> bool:
    """Whether any projection of the FFN is not known to be plain."""
    linears = [child for _, child in ffn.parent.named_children() if hasattr(child, "input_size")]
    return any(type(getattr(item, "quant_method", None)).__name__ != "UnquantizedLinearMethod" for item in linears)


def count_differences(activation: torch.nn.Module, rounding: Rounding, dtype: torch.dtype) -> int:
    """In how many numbers the kernel's product differs from that of vLLM's module on the current CUDA device.

    Zeros of either sign are one number here: a sum of products is the same with both.
    """
    rule = rule_of(activation)
    if rule is None:
        raise TypeError(f"{type(activation).__name__} is no gated activation of vLLM")
    reference: Callable[[torch.Tensor], torch.Tensor] = activation
    if rounding == "compiled":
        reference = _compiled_native(activation)
    different = 0
    for kind in {dtype, torch.float32}:  # float32 shows f to its last bit, which 16 bits hide
        for gate_up in _samples(rule, kind):
            different += _differences(reference(gate_up), _own_product(gate_up, rule, rounding))
    torch.cuda.empty_cache()  # vLLM measures next what the model leaves free
    return different


def _compiled_native(activation: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """TorchInductor's code for the module, whole or not at all: PyTorch would run the rest eagerly without a word."""

    def native(gate_up: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = activation.forward_native(gate_up)
        return result

    return torch.compile(native, dynamic=True, fullgraph=True)


def _own_product(gate_up: torch.Tensor, rule: GatedActivation, rounding: Rounding) -> torch.Tensor:
    from sparcom_extractor.capture.kernels import gated_activation

    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    masks = torch.empty((rows, 1, neurons // 8), dtype=torch.uint8, device=gate_up.device)
    stamps = torch.zeros(1, dtype=torch.int64, device=gate_up.device)
    result = gated_activation(gate_up, stamps.clone(), masks, stamps, rule, rounding)
    assert result is not None  # noqa: S101  (a rounding was given)
    return result


def _differences(one: torch.Tensor, other: torch.Tensor) -> int:
    same = (one == other) | (one.isnan() & other.isnan())
    return int((~same).sum())


def _samples(rule: GatedActivation, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Inputs (rows, 2·2048) on the current CUDA device: all gates of 16 bits, each with ups of all sizes."""
    device = torch.device("cuda", torch.cuda.current_device())
    generator = torch.Generator(device).manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16)
    kinds: dict[Any, list[torch.dtype]] = {torch.float32: [torch.bfloat16, torch.float16]}
    gates = [every.view(kind).to(dtype) for kind in kinds.get(dtype, [dtype])]
    if dtype == torch.float32:
        gates.append(torch.randn(64 * 2**16, generator=generator, device=device) * 4)
    for gate in gates:
        gate = gate.reshape(-1, _NEURONS)  # noqa: PLW2901
        repeated = gate.repeat(_UPS if len(gate) == 32 else 1, 1)
        up = torch.randn(repeated.shape, generator=generator, device=device) * 2
        up[: len(gate)] = 1  # f alone
        yield _join(rule, repeated, up.to(dtype))


def _join(rule: GatedActivation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The fused projection (rows, 2·neurons) whose parts these are."""
    gate_up = torch.empty((gate.shape[0], 2 * gate.shape[1]), dtype=gate.dtype, device=gate.device)
    for part, values in zip(rule.split(gate_up), (gate, up), strict=True):
        part.copy_(values)
    return gate_up
