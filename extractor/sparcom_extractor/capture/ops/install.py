"""Put capture into every FFN and MoE layer, and decide whether the kernel may make the activation output.

On CUDA the kernel's own output saves a second read of the gate, but capture must not change the model. So it is used
only where it is known to be equal:

    1. The forward method that vLLM bound tells what runs: `forward_cuda` is vLLM's kernel, `forward_native` in a
       compiled graph is TorchInductor's code. Eager code and other kinds are left alone.
    2. No projection of the FFN is quantized: TorchInductor and vLLM fuse an activation with the quantization that
       follows it, and then round differently.
    3. The kernel's output equals the module's on this device and with these versions (`compare.py`).

MoE experts always use vLLM's activation kernel and quantize in a separate one, so 1 and 2 hold. With a clamp limit vLLM
switches kernels, so there is none. In all other cases the signs are captured beside the module, which stays as it is:
right by construction, for one more kernel and one more read of the gate. On the CPU the op calls the module itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparcom_extractor.capture.discovery.activations import ActivationSpec
from sparcom_extractor.capture.discovery.ffn import GatedFFN
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation
from sparcom_extractor.capture.ops.compare import count_differences, count_expert_differences
from sparcom_extractor.capture.ops.experts import capturable_experts, install_experts
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, StepBuffers
from sparcom_extractor.vllm_surface.activations import bound_forward, is_compiled, is_unquantized, linear_layers
from sparcom_extractor.vllm_surface.moe import ExpertsLike, has_clamp_limit

logger = logging.getLogger("sparcom.capture")
Compare = Callable[[torch.nn.Module, ActivationSpec, Numerics, torch.dtype], int]
CompareExperts = Callable[[ExpertsLike, Any, ActivationSpec, torch.dtype], int]


def install_all(model: torch.nn.Module, found: Findings, buffers: StepBuffers, dtype: torch.dtype) -> str:
    """Install capture in a model before it is compiled. dtype: of its projections.

    Returns:
        How activation outputs are made, per component: "module" (CPU), "vllm_kernel" or "inductor" (by the op),
        "signs" (beside the op) or "gate" (see `install_experts`); and the numbers of the buffers. Compiled graphs
        depend on both.
    """
    modes = []
    if buffers.dense is not None:
        mode = install_ffns(found.dense, buffers.dense, dtype, compiled=is_compiled(model))
        modes.append(f"{mode}-{buffers.dense.number}")
    if buffers.shared is not None:
        # vLLM runs shared experts within an operator that TorchInductor does not trace into.
        mode = install_ffns(found.shared, buffers.shared, dtype, compiled=False)
        modes.append(f"shared-{mode}-{buffers.shared.number}")
    if buffers.experts is not None and buffers.routes is not None:
        cuda = buffers.experts.masks.device.type == "cuda"
        numerics = expert_numerics(found.moe, dtype) if cuda else None
        for index, layer in enumerate(found.moe):
            mode = install_experts(layer, index, buffers.routes, buffers.experts, numerics)
        modes.append(f"experts-{mode}-{buffers.experts.number}")
    return "+".join(modes)


def install_ffns(ffns: Sequence[GatedFFN], buffer: MaskBuffer, dtype: torch.dtype, *, compiled: bool) -> str:
    """Replace the activation of each FFN; the i-th FFN is layer i of the buffer. Return how outputs are made."""
    cuda = buffer.masks.device.type == "cuda"
    numerics = ffn_numerics(ffns[0], dtype, compiled=compiled) if cuda else None
    for index, ffn in enumerate(ffns):
        captured = CapturedActivation(getattr(ffn.parent, ffn.attribute), buffer, index, numerics)
        setattr(ffn.parent, ffn.attribute, captured)
    return numerics or ("signs" if cuda else "module")


def ffn_numerics(
    ffn: GatedFFN, dtype: torch.dtype, *, compiled: bool, compare: Compare = count_differences
) -> Numerics | None:
    """Return what the kernel's output must equal on CUDA, or None if only signs may be captured.

    compiled: whether TorchInductor compiles the FFN.
    """
    activation = getattr(ffn.parent, ffn.attribute)
    numerics = expected_numerics(activation, compiled=compiled)
    if numerics is None or not _has_output(ffn.spec, numerics):
        return None
    if not all(map(is_unquantized, linear_layers(ffn.parent))):
        return None
    return numerics if _is_equal(ffn.spec, lambda: compare(activation, ffn.spec, numerics, dtype)) else None


def expert_numerics(
    layers: Sequence[MoeLayer], dtype: torch.dtype, compare: CompareExperts = count_expert_differences
) -> Numerics | None:
    """Return the same for the experts of all layers, which have one spec."""
    experts, spec, kind = [capturable_experts(layer) for layer in layers], layers[0].spec, layers[0].runner.activation
    if any(map(has_clamp_limit, experts)) or not _has_output(spec, Numerics.VLLM_KERNEL):
        return None
    return Numerics.VLLM_KERNEL if _is_equal(spec, lambda: compare(experts[0], kind, spec, dtype)) else None


def expected_numerics(activation: torch.nn.Module, *, compiled: bool) -> Numerics | None:
    """Return whose code would run `activation`, from the method that vLLM bound; None for eager code."""
    name, wrapped = bound_forward(activation)
    if name == "forward_cuda":
        return Numerics.VLLM_KERNEL
    return Numerics.INDUCTOR if name == "forward_native" and (compiled or wrapped) else None


def _has_output(spec: ActivationSpec, numerics: Numerics) -> bool:
    from sparcom_extractor.capture.ops.activation_kernel import FUSED  # needs Triton

    return spec.kind in FUSED[numerics]


def _is_equal(spec: ActivationSpec, compare: Callable[[], int]) -> bool:
    """Return whether a comparison finds no difference. If it does, or fails, log why."""
    try:
        different = compare()
    except Exception as error:  # noqa: BLE001  compilers raise anything, and capture works without the comparison
        logger.warning(
            "capture takes signs beside %s: it could not be compared: %s: %s", spec, type(error).__name__, error
        )
        return False
    if different:
        logger.warning(
            "capture takes signs beside %s: the kernel's output differs from vLLM's in %d numbers on this device. "
            "Results are the same, a little slower; report it with the versions of torch and vLLM",
            spec,
            different,
        )
    return not different
