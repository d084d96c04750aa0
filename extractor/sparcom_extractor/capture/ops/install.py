"""Put a captured activation into every FFN, and decide whether the kernel may make the product itself.

On CUDA the kernel's own product costs no second look at the gate, but the model must say the same with and without
capture. So it is used only where that is known:

    1. from how vLLM would run this very module: bound to `forward_cuda` it is vLLM's kernel, `forward_native` within
       a compiled graph is TorchInductor's code; eager code and activations that no rounding fits are left alone;
    2. no projection of the FFN is quantised: TorchInductor and vLLM fuse an activation with the quantisation that
       follows it, and round differently then;
    3. the kernel's product equals the module's, on this device and with these versions (`compare.py`).

Experts gate by vLLM's kernel always, and what is quantised behind them is quantised by a kernel of its own: there the
first is known, the second does not matter, and a limit, which makes vLLM take another kernel, is looked for instead.

Otherwise the signs are taken beside the module, which stays as it is: right by construction, for one more kernel and
one more read of the gate. On the CPU the op calls the module itself, and there is nothing to decide.

It knows of vLLM only the names of attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparcom_extractor.capture.discovery.activations import GatedActivation
from sparcom_extractor.capture.discovery.findings import Findings, GatedFFN, MoeLayer
from sparcom_extractor.capture.ops.buffer import CaptureBuffer
from sparcom_extractor.capture.ops.buffers import StepBuffers
from sparcom_extractor.capture.ops.compare import count_differences, count_expert_differences
from sparcom_extractor.capture.ops.experts import ExpertSlots, install_experts, is_plain, shown_experts
from sparcom_extractor.capture.ops.op import CapturedActivation
from sparcom_extractor.capture.ops.reference import Rounding

_LOG = logging.getLogger("sparcom.capture")
Compare = Callable[[torch.nn.Module, Rounding, torch.dtype], int]
CompareExperts = Callable[[Any, Any, GatedActivation, torch.dtype], int]


def install_all(model: torch.nn.Module, found: Findings, buffers: StepBuffers, dtype: torch.dtype) -> str:
    """Capture everything of a model; see `install_capture` and `install_experts`.

    Returns:
        How it is done, for a log and for the key of vLLM's compilation cache.
    """
    ways = []
    if buffers.neurons is not None:
        way = install_capture(model, found.dense, buffers.neurons, dtype)
        ways.append(f"{way}-{buffers.neurons.number}")
    if buffers.shared is not None:
        # vLLM runs shared experts within an operator that TorchInductor does not look into
        way = install_capture(model, found.shared, buffers.shared, dtype, compiled=False)
        ways.append(f"shared-{way}-{buffers.shared.number}")
    if buffers.experts is not None and buffers.routes is not None:
        cuda = buffers.experts.masks.device.type == "cuda"
        rounding = choose_experts_rounding(found.moe, dtype) if cuda else None
        for index, layer in enumerate(found.moe):
            way = install_experts(layer, ExpertSlots(index, buffers.routes, buffers.experts), rounding)
        ways.append(f"experts-{way}-{buffers.experts.number}")
    return "+".join(ways)


def install_capture(
    model: torch.nn.Module,
    ffns: Sequence[GatedFFN],
    buffer: CaptureBuffer,
    dtype: torch.dtype,
    *,
    compiled: bool | None = None,
) -> str:
    """Replace the activation of each FFN, layer i of the buffer for the i-th.

    Args:
        model: the model that the FFNs belong to, before it is compiled.
        ffns: from `find_gated_ffns`.
        buffer: of as many layers, on the model's device.
        dtype: of the projections.
        compiled: whether TorchInductor compiles these FFNs; found out where not given.

    Returns:
        How the product is made: "module" (CPU), "kernel" or "compiled" (by the op), "signs" (beside the op). The
        compiled graph depends on it.
    """
    cuda = buffer.masks.device.type == "cuda"
    compiled = is_compiled(model) if compiled is None else compiled
    rounding = choose_rounding(ffns[0], dtype, compiled=compiled) if cuda else None
    for index, ffn in enumerate(ffns):
        captured = CapturedActivation(getattr(ffn.parent, ffn.attribute), buffer.register(index), rounding)
        setattr(ffn.parent, ffn.attribute, captured)
    return rounding or ("signs" if cuda else "module")


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether vLLM compiles the model with TorchInductor: its decorator leaves `do_not_compile` on what it compiles."""
    compiled: list[Any] = [module for module in model.modules() if getattr(module, "do_not_compile", True) is False]
    return any(module.compilation_config.backend != "eager" for module in compiled)


def choose_rounding(
    ffn: GatedFFN, dtype: torch.dtype, *, compiled: bool, compare: Compare = count_differences
) -> Rounding | None:
    """Whose arithmetic the kernel follows for an FFN on CUDA, or None where only the signs may be taken."""
    from sparcom_extractor.capture.ops.kernels import FUSED

    activation = getattr(ffn.parent, ffn.attribute)
    rounding = expected_rounding(activation, compiled=compiled)
    if rounding is None or ffn.rule.kind not in FUSED[rounding] or is_quantised(ffn):
        return None
    return rounding if _is_equal(ffn.rule, lambda: compare(activation, rounding, dtype)) else None


def choose_experts_rounding(
    layers: Sequence[MoeLayer], dtype: torch.dtype, compare: CompareExperts = count_expert_differences
) -> Rounding | None:
    """The same for the experts of all layers, which gate alike."""
    from sparcom_extractor.capture.ops.kernels import FUSED

    experts, rule = [shown_experts(layer) for layer in layers], layers[0].rule
    if rule.kind not in FUSED["kernel"] or not all(map(is_plain, experts)):
        return None
    kind = layers[0].runner.activation
    return "kernel" if _is_equal(rule, lambda: compare(experts[0], kind, rule, dtype)) else None


def _is_equal(rule: GatedActivation, compare: Callable[[], int]) -> bool:
    """Whether the comparison finds no number that differs; where it does, or breaks, the log says why."""
    try:
        different = compare()
    except Exception as error:  # noqa: BLE001  compilers raise what they like, and there is a way without them
        _LOG.warning(
            "capture takes signs beside %s: it could not be compared: %s: %s", rule, type(error).__name__, error
        )
        return False
    if different:
        _LOG.warning(
            "capture takes signs beside %s: the kernel's product differs from vLLM's in %d numbers on this device. "
            "Results are the same, a little slower; report it with the versions of torch and vLLM",
            rule,
            different,
        )
    return not different


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
