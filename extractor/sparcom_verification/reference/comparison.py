"""Compare instructions of an archive with a transformers model.

Masks: the reference runs the token ids of an instruction, after its prompt if only the response was captured. Every bit
is compared with its gate (`bits`). In MoE models the routes, their weights and the experts' bits are compared as well
(`experts`).

Counts: token ids are not stored. Prompts are tokenized again from their text, and responses cannot be compared. A gate
within the rounding bound may fall on either side of zero, so for each neuron and instruction

    #(gate > bound)  ≤  count  ≤  #(gate > −bound)     over the rows of the instruction.
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
from sparcom_verification.reference.bits import MAX_EXAMPLES, BitComparison, Gates, rounding_bound
from sparcom_verification.reference.experts import CapturedExperts, ExpertComparison
from sparcom_verification.reference.model import ReferenceModel

PromptIds = Callable[[int], NDArray[np.int32]]
"""Returns the token ids of a prompt by the index of its instruction."""


@dataclass(slots=True)
class MaskComparison(BitComparison):
    """Totals over all bits. rows: tokens. dense: bits of dense layers. experts: MoE layers, None for a dense model."""

    instructions: int = 0
    rows: int = 0
    dense: BitComparison = field(default_factory=BitComparison)
    experts: ExpertComparison | None = None


@dataclass(slots=True)
class CountComparison(BitComparison):
    """Totals over counts; `differing` and `unexplained` are counts.

    bits: gates behind the counts, rows × neurons of all layers. counts: instructions × neurons of all layers.
    difference: sum of absolute differences.
    """

    instructions: int = 0
    rows: int = 0
    counts: int = 0
    difference: int = 0

    @property
    def share(self) -> float:
        """Sum of differences over the number of bits; at most the fraction of bits that differ."""
        return self.difference / self.bits if self.bits else 0.0

    def add_counts(self, counts: torch.Tensor, gates: Gates, name: str) -> None:
        """Compare one layer of one instruction, int64 (neurons,)."""
        differences = (counts - (gates.gate > 0).sum(dim=0)).abs()
        neurons = differences.nonzero()[:, 0]  # equal counts are within any bound
        bound = rounding_bound(gates.inputs, gates.weight[neurons])
        gate = gates.gate[:, neurons].double()
        least, most = (gate > bound).sum(dim=0), (gate > -bound).sum(dim=0)
        wrong = (counts[neurons] < least) | (counts[neurons] > most)
        self.bits += gates.gate.numel()
        self.counts += counts.numel()
        self.differing += len(neurons)
        self.difference += int(differences.sum())
        self.unexplained += int(wrong.sum())
        self.examples.extend(
            f"{name}, neuron {neurons[at]}: {counts[neurons[at]]} instead of {least[at]} to {most[at]}"
            for at in wrong.nonzero()[: MAX_EXAMPLES - len(self.examples), 0]
        )


def compare_masks(
    archive: Archive, reference: ReferenceModel, indices: Iterable[np.int64], prompt_ids: PromptIds
) -> MaskComparison:
    """Compare all bits of complete instructions. `prompt_ids` is used for archives of responses without prompts."""
    model = archive.attributes.model
    experts = ExpertComparison(model.dtype, unjudged=reference.unjudged) if model.moe else None
    result = MaskComparison(experts=experts)
    for index in map(int, indices):
        result.instructions += 1
        if archive.instructions.token_length[index]:
            _compare_instruction(result, archive, reference, index, prompt_ids)
    for part in [result.dense, *([experts.experts, experts.shared] if experts else [])]:
        result.include(part)
    return result


def _compare_instruction(
    result: MaskComparison, archive: Archive, reference: ReferenceModel, index: int, prompt_ids: PromptIds
) -> None:
    table = archive.instructions
    start = int(table.token_start[index])
    stop = start + int(table.token_length[index])
    ids, positions = archive.read_tokens(start, stop)
    first, instruction = int(positions[0]), table.id[index]
    prompt = prompt_ids(index) if first else ids[:0]
    if len(prompt) != first:
        problem = (
            f"response rows are compared after their prompt; that of {instruction!r} has {first} tokens, but its text "
            f"gives {len(prompt)}. Leave out --no-tokenizer; prompts given as token ids and captured with positions "
            "'response' cannot be compared"
        )
        raise InvalidInputError(problem)

    def name(row: int, layer: int) -> str:
        return f"instruction {instruction!r}, token {first + row} (id {ids[row]}), layer {layer}"

    captured = _read_experts(archive, start, stop, first, name)
    follow = partial(result.experts.follow, captured) if result.experts and captured else None
    run = reference.run(np.concatenate([prompt, ids]), follow)
    result.rows += len(ids)
    if result.experts and captured:
        result.experts.add(captured, run)
    if run.dense:
        masks = _unpacked(archive.read_active(start, stop), archive.neurons)
        for at, (layer, gates) in enumerate(zip(archive.attributes.model.layer_ids, run.dense, strict=True)):
            result.dense.add(torch.from_numpy(masks[:, at]), gates.rows_from(first), partial(name, layer=layer))


def _read_experts(
    archive: Archive, start: int, stop: int, first: int, name: Callable[[int, int], str]
) -> CapturedExperts | None:
    if (moe := archive.moe) is None:
        return None
    expert, weight = archive.read_routes(start, stop)
    return CapturedExperts(
        first=first,
        topk_ids=expert.astype(np.int64),
        topk_weights=weight,
        active=_unpacked(archive.read_expert_active(start, stop), moe.neurons),
        shared=_unpacked(archive.read_shared_active(start, stop), moe.shared_neurons) if moe.shared_neurons else None,
        name=lambda row, at: name(row, moe.layer_ids[at]),
    )


def _unpacked(masks: NDArray[np.uint8], neurons: int) -> NDArray[np.bool_]:
    """Unpack uint8 (…, neuron_byte) to bool (…, neuron)."""
    return np.unpackbits(masks, axis=-1, bitorder="little", count=neurons).view(np.bool_)


def compare_counts(
    archive: Archive, reference: ReferenceModel, indices: Iterable[np.int64], prompt_ids: PromptIds
) -> CountComparison:
    """Compare all counts of instructions; `indices` come from `comparable_instructions`."""
    result, table, layer_ids = CountComparison(), archive.instructions, archive.attributes.model.layer_ids
    for index in map(int, indices):
        ids, length = prompt_ids(index), int(table.token_length[index])
        if len(ids) != length:
            problem = (
                f"counts are compared over the counted tokens; {table.id[index]!r} has {length}, but its text gives "
                f"{len(ids)}. Leave out --no-tokenizer, or give the right folder with --model"
            )
            raise InvalidInputError(problem)
        counts = torch.from_numpy(archive.read_counts(index, index + 1)[0].astype(np.int64))
        for layer, count, gates in zip(layer_ids, counts, reference.run(ids).dense, strict=True):
            result.add_counts(count, gates, f"instruction {table.id[index]!r}, layer {layer}")
        result.instructions += 1
        result.rows += length
    return result


def comparable_instructions(archive: Archive) -> NDArray[np.int64]:
    """Return the indices of comparable instructions, int64, ascending: complete, and for counts with a text.

    Raises:
        InvalidInputError: counts of an MoE model, counts of responses, or counts without any text.
    """
    complete, positions = archive.instructions.complete, archive.attributes.capture.positions
    if archive.granularity != "count":
        return complete
    texts = archive.strings("text")
    found = np.array([index for index in complete if texts[index]], dtype=np.int64)
    if archive.moe is not None:
        problem = f"counts can be compared only for dense models; that of {archive.path} is an MoE model"
    elif positions != "prompt":
        problem = "counts can be compared only for prompts, since token ids of responses are not stored with counts; "
        problem += f"{archive.path} was captured with positions={positions!r}"
    elif not len(found):
        problem = (
            f"counts can be compared only for prompts with a text; {archive.path} has no complete instruction with one"
        )
    else:
        return found
    remedy = "To check the model and its settings, extract some instructions with granularity 'token' and compare those"
    raise InvalidInputError(f"{problem}. {remedy}")


def sample_indices(archive: Archive, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw `count` comparable instructions without replacement, in ascending order; all if there are fewer."""
    among = comparable_instructions(archive)
    return among if count >= len(among) else np.sort(np.random.default_rng(seed).choice(among, count, replace=False))
