"""Install capture in every FFN and MoE layer, and decide whether our kernel computes the activation output.

Computing the output in the capture kernel saves a second read of the gate. This requires proof that the output equals
vLLM's:

    1. vLLM bound the forward method `forward_cuda`, its own kernel, or `forward_native`: in a compiled graph on CUDA,
       and run eagerly, in float32, on a CPU whose vectors `cpu.kernel` knows;
    2. no projection of the FFN is quantized;
    3. the outputs are equal on this device and with these versions (`compare.py`).

For MoE experts, vLLM uses its own activation kernel and quantizes in a separate one, so 1 and 2 hold. A clamp limit is
the exception. In all other cases signs are captured next to the module: the gate is read twice.

vLLM may fuse the activation with the quantization of the down projection, which rounds differently. It chooses the
fused kernel by the type of the activation module. In an FFN with a quantized projection capture therefore keeps that
module, and takes the signs behind the gate and up projection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec, GatedFFN
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.activation_reference import FUSED, Numerics
from sparcom_extractor.capture.ops.captured_activation import (
    CapturedActivation,
    LayerCapture,
    capture_projection,
    feeds_activation,
)
from sparcom_extractor.capture.ops.compare import Output, count_differences, output_of_experts
from sparcom_extractor.capture.ops.cpu.kernel import silu_lanes
from sparcom_extractor.capture.ops.experts import capturable_experts, install_experts
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.vllm_surface.activations import bound_forward, is_compiled, is_unquantized, linear_layers
from sparcom_extractor.vllm_surface.moe import has_clamp_limit

logger = logging.getLogger("sparcom.capture")
Compare = Callable[[Output, ActivationSpec, Numerics, torch.dtype], int]


def install_all(model: torch.nn.Module, found: Findings, buffers: StepBuffers, dtype: torch.dtype) -> str:
    """Install capture in a model before it is compiled; compiled graphs depend on the returned string.
    It names the source of the output per component: "vllm_kernel", "inductor" or "pytorch" (our kernel, with these
    numerics), "signs" or, on a CPU, "module" (vLLM's code; our kernel captures only), "projection" (the same, behind a
    quantized projection) or "gate" (see `install_experts`). dtype: of the projections."""
    modes = []
    # vLLM runs shared experts within an op that TorchInductor does not trace into.
    dense = ("", found.dense, buffers.dense, is_compiled(model))
    for name, ffns, buffer, compiled in (dense, ("shared-", found.shared, buffers.shared, False)):
        if buffer is not None:
            cuda, sources = buffer.masks.device.type == "cuda", []
            projections = [quantized_projection(ffn) for ffn in ffns]
            replaced = [ffn for ffn, projection in zip(ffns, projections, strict=True) if projection is None]
            fuse = replaced and not any(map(is_quantized, replaced))
            numerics = ffn_numerics(replaced[0], dtype, compiled=compiled, cuda=cuda) if fuse else None
            for index, (ffn, projection) in enumerate(zip(ffns, projections, strict=True)):
                capture = LayerCapture(buffer, index, getattr(ffn.parent, ffn.attribute), ffn.spec, numerics)
                if projection is None:
                    setattr(ffn.parent, ffn.attribute, CapturedActivation(capture))
                else:
                    capture_projection(projection, capture)
                sources.append("projection" if projection else numerics or ("signs" if cuda else "module"))
            modes.append(f"{name}{'/'.join(dict.fromkeys(sources))}-{buffer.number}")
    if buffers.experts is not None and buffers.routes is not None:
        cuda = buffers.experts.masks.device.type == "cuda"
        numerics = expert_numerics(found.moe, dtype) if cuda else None
        for index, layer in enumerate(found.moe):
            mode = install_experts(layer, index, buffers.routes, buffers.experts, numerics)
        modes.append(f"experts-{mode}-{buffers.experts.number}")
    return "+".join(modes)


def is_quantized(ffn: GatedFFN) -> bool:
    """Return whether a projection of the FFN is, or might be, quantized."""
    return not all(map(is_unquantized, linear_layers(ffn.parent)))


def quantized_projection(ffn: GatedFFN) -> torch.nn.Module | None:
    """Return the gate and up projection of a quantized FFN. None if it is unquantized, or does not pass the output of
    that projection to its activation unchanged: then the activation is replaced, and vLLM cannot fuse it."""
    if not is_quantized(ffn):
        return None
    double = 2 * ffn.intermediate_size
    found = [child for child in ffn.parent.children() if getattr(child, "output_size", 0) == double]
    if len(found) == 1 and feeds_activation(ffn, found[0]):
        return found[0]
    logger.warning(
        "capture replaces the activation of %s, which is quantized: its masks are correct, but vLLM cannot fuse the "
        "activation with the quantization, and the last bit of its output may differ. Please report the model",
        ffn.name,
    )
    return None


def ffn_numerics(
    ffn: GatedFFN, dtype: torch.dtype, *, compiled: bool, cuda: bool = True, compare: Compare = count_differences
) -> Numerics | None:
    """Return the numerics of the kernel's output, or None for signs only. compiled: by TorchInductor."""
    activation = getattr(ffn.parent, ffn.attribute)
    if cuda:
        numerics = expected_numerics(activation, compiled=compiled)
    else:
        eager = bound_forward(activation) in (("forward_cpu", False), ("forward_native", False)) and not compiled
        known = dtype == torch.float32 and ffn.spec == SILU and ffn.intermediate_size_per_partition >= 8
        numerics = Numerics.PYTORCH if eager and known and silu_lanes() else None
    if numerics is None or is_quantized(ffn):
        return None
    return _checked(activation, ffn.spec, numerics, dtype, compare)


def expert_numerics(
    layers: Sequence[MoeLayer], dtype: torch.dtype, compare: Compare = count_differences
) -> Numerics | None:
    """Return the same for the experts of all layers, which share one spec."""
    experts = [capturable_experts(layer) for layer in layers]
    if any(map(has_clamp_limit, experts)):
        return None
    activation = output_of_experts(experts[0], layers[0].runner.activation)
    return _checked(activation, layers[0].spec, Numerics.VLLM_KERNEL, dtype, compare)


def expected_numerics(activation: torch.nn.Module, *, compiled: bool) -> Numerics | None:
    """On CUDA, return the code that would run `activation`, from the method that vLLM bound; None for eager code."""
    name, wrapped = bound_forward(activation)
    if name == "forward_cuda":
        return Numerics.VLLM_KERNEL
    return Numerics.INDUCTOR if name == "forward_native" and (compiled or wrapped) else None


def _checked(
    activation: Output, spec: ActivationSpec, numerics: Numerics, dtype: torch.dtype, compare: Compare
) -> Numerics | None:
    """Return `numerics` if the kernel has this output and a comparison finds no difference; else log why not."""
    if spec.kind not in FUSED[numerics]:
        return None
    try:
        different = compare(activation, spec, numerics, dtype)
    except Exception as error:  # noqa: BLE001  compilers raise anything, and capture works without the comparison
        reason = f"the comparison failed: {type(error).__name__}: {error}"
    else:
        if not different:
            return numerics
        reason = f"the kernel's output differs from vLLM's in {different} values on this device"
    logger.warning(
        "capture reads the gate of %s twice, which is correct but slower: %s. Please report it", spec, reason
    )
    return None
