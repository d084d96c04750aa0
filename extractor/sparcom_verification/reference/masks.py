"""Is an archive right? Run some of its instructions through Hugging Face transformers and compare every bit.

1. An instruction's rows are read, with its prompt where only the response was captured. 2. The reference
(`reference_model`) runs them. 3. Bits are compared with its gates but for rounding (`reference_bits`); in MoE models
the top-k experts, their weights and their bits too (`reference_experts`).
Archives of counts are compared in reference_counts.py, by the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError
from sparcom_verification.reference.bits import Bits
from sparcom_verification.reference.experts import CapturedExperts, ExpertComparison
from sparcom_verification.reference.model import ReferenceModel, Run

__all__ = ["Comparison", "ReferenceModel", "compare_with_reference", "sample_indices"]


@dataclass(slots=True)
class Comparison:
    """What a comparison of N instructions found.

    rows: tokens compared. dense: bits of the dense layers. experts: the mixtures of experts, where the model has any.
    """

    instructions: int = 0
    rows: int = 0
    dense: Bits = field(default_factory=Bits)
    experts: ExpertComparison | None = None

    @property
    def bits(self) -> int:
        """Bits of all layers and rows compared, of dense, routed and shared neurons."""
        return sum(part.bits for part in self._parts)

    @property
    def differing(self) -> int:
        """Bits that differ."""
        return sum(part.differing for part in self._parts)

    @property
    def unexplained(self) -> int:
        """Differing bits whose gate in the reference is not within the bound of zero."""
        return sum(part.unexplained for part in self._parts)

    @property
    def examples(self) -> list[str]:
        """Names of some bits that are not explained."""
        return [example for part in self._parts for example in part.examples]

    @property
    def share(self) -> float:
        """Differing bits as a share of all."""
        return self.differing / self.bits if self.bits else 0.0

    @property
    def _parts(self) -> list[Bits]:
        return [self.dense, *([self.experts.experts, self.experts.shared] if self.experts else [])]


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
    model = archive.attributes.model
    experts = ExpertComparison(model.dtype, unjudged=reference.unjudged) if model.moe else None
    result = Comparison(experts=experts)
    table = archive.instructions
    for index in map(int, indices):
        start, length = int(table.token_start[index]), int(table.token_length[index])
        result.instructions += 1
        result.rows += length
        if not length:
            continue
        ids, positions = archive.read_tokens(start, start + length)
        first = int(positions[0])
        whole = np.concatenate([_whole_prompt(prompt_ids(index), first, table.id[index]), ids]) if first else ids
        name = _Named(table.id[index], ids, first)
        captured = _read_experts(archive, start, start + length, name)
        follower = result.experts.follower(captured, first) if result.experts and captured else None
        run = reference.run(whole, follower)
        if result.experts and captured:
            result.experts.add(captured, run.routed, run.shared, first)
        _compare_dense(result.dense, archive, run, start, name)
    return result


@dataclass(frozen=True, slots=True)
class _Named:
    """Names the rows of one instruction in findings. ids: int32 (rows,); first: position of the first row."""

    instruction: str
    ids: NDArray[np.int32]
    first: int

    def __call__(self, row: int, layer: int) -> str:
        return f"instruction {self.instruction!r}, token {self.first + row} (id {self.ids[row]}), layer {layer}"


def _read_experts(archive: Archive, start: int, stop: int, name: _Named) -> CapturedExperts | None:
    moe = archive.moe
    if moe is None:
        return None
    expert, weight = archive.read_routes(start, stop)
    active = _unpacked(archive.read_expert_active(start, stop), moe.neurons)
    shared = _unpacked(archive.read_shared_active(start, stop), moe.shared_neurons) if moe.shared_neurons else None
    return CapturedExperts(expert, weight, active, lambda row, place: name(row, moe.layer_ids[place]), shared)


def _unpacked(masks: NDArray[np.uint8], neurons: int) -> NDArray[np.bool_]:
    """uint8 (…, neuron_byte) as bool (…, neuron)."""
    return np.unpackbits(masks, axis=-1, bitorder="little", count=neurons).view(np.bool_)


def _compare_dense(result: Bits, archive: Archive, run: Run, start: int, name: _Named) -> None:
    if not run.dense:
        return
    masks = _unpacked(archive.read_active(start, start + len(name.ids)), archive.neurons)
    for place, (layer, gates) in enumerate(zip(archive.attributes.model.layer_ids, run.dense, strict=True)):
        inputs, gate = gates.inputs[name.first :], gates.gate[name.first :]
        result.compare(torch.from_numpy(masks[:, place]), inputs, gate, gates.weight, partial(name, layer=layer))


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
