"""Is an archive right? Run some of its instructions through Hugging Face transformers and compare every bit.

The reference shares nothing with the capture: another implementation of the model, one prompt at a time, no KV cache,
the gate taken where transformers computes it. Two correct implementations round differently, so a neuron whose gate
is within rounding of zero may fall on either side. That is judged, not assumed: for every bit that differs the
reference's own gate value must be within

    bound = ROUNDINGS · eps(dtype) · Σ_k |x_k| |W_ik|

of zero, where x is the gate projection's input and W its weights: the size of the terms that cancel in that sum, times
the unit of rounding, times an allowance for the roundings of the layers before (measured on SmolLM2: DECISIONS.md).
Archives of counts are compared in reference_counts.py, by the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_extractor.capture.discover import layer_number

ROUNDINGS = 256.0
FUSED_NAME = "gate_up_proj"
GATE_NAMES = ("gate_proj", FUSED_NAME)


@dataclass(slots=True)
class Comparison:
    """What a comparison of N instructions found. Bits are those of all layers and rows compared.

    excess: for each differing bit, |gate| / bound; above 1 is not explained by rounding.
    """

    instructions: int = 0
    rows: int = 0
    bits: int = 0
    excess: list[float] = field(default_factory=list)

    @property
    def differing(self) -> int:
        """Bits that differ."""
        return len(self.excess)

    @property
    def unexplained(self) -> int:
        """Differing bits whose gate in the reference is not within the bound of zero."""
        return sum(value > 1 for value in self.excess)

    @property
    def share(self) -> float:
        """Differing bits as a share of all."""
        return self.differing / self.bits if self.bits else 0.0


class ReferenceModel:
    """A transformers model whose gate projections are watched."""

    def __init__(self, model: str, dtype: str, layer_ids: list[int]) -> None:
        from transformers import AutoModelForCausalLM

        try:
            self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                [
                    f"the reference model {model!r} cannot be loaded: {str(error).splitlines()[0]}. "
                    "Give its folder with --model"
                ]
            ) from error
        self._model.eval()
        self._gates = _gate_projections(self._model)
        if missing := sorted(set(layer_ids) - set(self._gates)):
            raise UnsupportedModelError(
                f"the reference has a gate projection in every captured layer; transformers' "
                f"{type(self._model).__name__} has none called {' or '.join(GATE_NAMES)} in layers {missing}"
            )
        self._layer_ids = layer_ids

    @torch.inference_mode()
    def gates(self, ids: NDArray[np.int32]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each captured layer: input (T, hidden), gate (T, neurons) and weights (neurons, hidden)."""
        with _watched(self._gates) as seen:
            self._model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
        for layer in self._layer_ids:
            inputs, output = seen[layer]
            gate = self._gates[layer]
            neurons = output.shape[-1] // (2 if gate.fused else 1)
            yield inputs[0], output[0, :, :neurons], gate.projection.weight.detach()[:neurons]


@dataclass(frozen=True, slots=True)
class _Gate:
    """The linear layer that computes the gate, alone or fused with up (gate first)."""

    projection: Any
    fused: bool


def _gate_projections(model: torch.nn.Module) -> dict[int, _Gate]:
    found: dict[int, _Gate] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in GATE_NAMES:
            found[layer_number(name)] = _Gate(module, fused=name.endswith(FUSED_NAME))
    return found


@contextmanager
def _watched(gates: dict[int, _Gate]) -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(layer: int) -> Callable[[Any, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[layer] = (inputs[0], output)

        return hook

    handles = [gate.projection.register_forward_hook(watch(layer)) for layer, gate in gates.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def compare_with_reference(
    archive: Archive,
    reference: ReferenceModel,
    indices: Iterable[np.int64],
    prompt_ids: Callable[[int], NDArray[np.int32]],
) -> Comparison:
    """Run instructions through the reference and compare all bits of their rows.

    Args:
        archive: the archive.
        reference: the model.
        indices: which instructions, all complete.
        prompt_ids: the prompt's token ids of an instruction, for archives that hold response rows alone.
    """
    result = Comparison()
    table = archive.instructions
    for index in indices:
        start, length = int(table.token_start[index]), int(table.token_length[index])
        ids, positions = archive.read_tokens(start, start + length)
        first = int(positions[0]) if length else 0
        whole = np.concatenate([_whole_prompt(prompt_ids(int(index)), first, table.id[index]), ids]) if first else ids
        masks = np.unpackbits(archive.read_active(start, start + length), axis=-1, bitorder="little")
        if length:
            _compare_layers(result, reference, whole, masks[..., : archive.neurons], first)
        result.instructions += 1
        result.rows += length
    return result


def _whole_prompt(prompt: NDArray[np.int32], length: int, instruction: str) -> NDArray[np.int32]:
    if len(prompt) != length:
        raise InvalidInputError(
            [
                f"response rows are compared after their prompt; that of {instruction!r} has {length} tokens "
                f"and {len(prompt)} can be had from its text. Leave out --no-tokenizer; prompts given as token ids and "
                "captured with positions 'response' cannot be compared"
            ]
        )
    return prompt


def _compare_layers(
    result: Comparison, reference: ReferenceModel, ids: NDArray[np.int32], masks: NDArray[np.uint8], first: int
) -> None:
    for layer, (inputs, gate, weight) in enumerate(reference.gates(ids)):
        captured = torch.from_numpy(masks[:, layer].astype(bool))
        differs = (gate[first:] > 0) != captured
        result.bits += captured.numel()
        rows = differs.any(dim=1).nonzero()[:, 0]
        excess = gate[first + rows].double().abs() / rounding_bound(inputs[first + rows], weight)
        result.excess.extend(excess[differs[rows]].tolist())


def rounding_bound(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far from zero rounding may explain a gate to lie: float64 (rows, neurons).

    Args:
        inputs: (rows, hidden), of the gate projection.
        weight: (neurons, hidden), of the neurons that are asked for.
    """
    return ROUNDINGS * torch.finfo(inputs.dtype).eps * (inputs.double().abs() @ weight.double().abs().T)


def sample_indices(
    archive: Archive, count: int, seed: int = 0, among: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """`count` instructions drawn without replacement, in order; all of them where there are fewer.

    Args:
        among: the instructions to draw from, ascending; all complete ones where not given.
    """
    those = archive.instructions.complete if among is None else among
    if count >= len(those):
        return those
    return np.sort(np.random.default_rng(seed).choice(those, size=count, replace=False))
