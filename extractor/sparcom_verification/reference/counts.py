"""Are an archive's counts right? Run some of its instructions through Hugging Face transformers and count its gates.

The reference is that of reference_model.py, one prompt at a time. No token id is kept beside counts, so prompts are
tokenised again from their text; what was generated cannot be told from its text, so only counts of prompts can be
compared.

A gate within rounding of zero may fall on either side, so a count need not be equal. With the bound of
reference_bits.py, for each neuron and instruction

    #(gate > bound)  ≤  count  ≤  #(gate > −bound)

must hold over the instruction's rows: every row outside the bound is counted as the reference counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError
from sparcom_verification.reference.bits import MOST_EXAMPLES, rounding_bound
from sparcom_verification.reference.model import ReferenceModel


@dataclass(slots=True)
class CountComparison:
    """What a comparison of N instructions found.

    rows: tokens that were counted. bits: gates behind the counts, rows × neurons of all layers.
    counts: instructions × neurons of all layers. differing: counts that differ from the reference's.
    difference: sum of how much they differ. unexplained: counts that rounding does not explain; examples: some of them.
    """

    instructions: int = 0
    rows: int = 0
    bits: int = 0
    counts: int = 0
    differing: int = 0
    difference: int = 0
    unexplained: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The sum of differences as a share of the bits counted: at most the share of bits that differ."""
        return self.difference / self.bits if self.bits else 0.0


def comparable_instructions(archive: Archive) -> NDArray[np.int64]:
    """Complete instructions whose tokens can be had again: those with a text, int64, ascending.

    Raises:
        InvalidInputError: the counts hold response tokens, which no text gives back; or no instruction has a text; or
            the model is a mixture of experts.
    """
    if archive.moe is not None:
        raise InvalidInputError(
            [
                f"counts can be compared with a reference where the model is dense; that of {archive.path} is a "
                "mixture of experts. To check the model and its settings, extract some instructions with granularity "
                "'token' and compare those"
            ]
        )
    positions = archive.attributes.capture.positions
    if positions != "prompt":
        raise InvalidInputError(
            [
                f"counts can be compared with a reference where they are of prompts; {archive.path} was captured with "
                f"positions={positions!r}, and token ids of responses are not kept beside counts. To check the model "
                "and its settings, extract some instructions with granularity 'token' and compare those"
            ]
        )
    texts = archive.strings("text")
    found = np.array([index for index in archive.instructions.complete if texts[index]], dtype=np.int64)
    if not len(found):
        raise InvalidInputError(
            [
                "counts are compared over the tokens of an instruction's text; "
                f"{archive.path} has no complete instruction with a text. "
                "Prompts given as token ids can be compared with granularity 'token'"
            ]
        )
    return found


def compare_counts_with_reference(
    archive: Archive,
    reference: ReferenceModel,
    indices: Iterable[np.int64],
    prompt_ids: Callable[[int], NDArray[np.int32]],
) -> CountComparison:
    """Run prompts through the reference and compare all counts.

    Args:
        archive: an archive of counts.
        reference: the model.
        indices: which instructions, of `comparable_instructions`.
        prompt_ids: the prompt's token ids of an instruction, from its text.
    """
    result = CountComparison()
    for index in map(int, indices):
        ids = _checked_length(archive, index, prompt_ids(index))
        counts = archive.read_counts(index, index + 1)[0].astype(np.int64)
        for place, (inputs, gate, weight) in enumerate(reference.gates(ids)):
            name = f"instruction {archive.instructions.id[index]!r}, layer {archive.attributes.model.layer_ids[place]}"
            _compare_layer(result, torch.from_numpy(counts[place]), inputs, gate, weight, name)
        result.instructions += 1
        result.rows += len(ids)
    return result


def _checked_length(archive: Archive, index: int, ids: NDArray[np.int32]) -> NDArray[np.int32]:
    length = int(archive.instructions.token_length[index])
    if len(ids) != length:
        raise InvalidInputError(
            [
                f"counts are compared over the tokens that were counted; {archive.instructions.id[index]!r} has "
                f"{length} and {len(ids)} can be had from its text. Leave out --no-tokenizer, or give the right "
                "folder with --model"
            ]
        )
    return ids


def _compare_layer(
    result: CountComparison,
    counts: torch.Tensor,
    inputs: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    name: str,
) -> None:
    """Compare one layer of one instruction: counts int64 (neurons,), inputs (T, hidden), gate (T, neurons)."""
    differences = (counts - (gate > 0).sum(dim=0)).abs()
    neurons = differences.nonzero()[:, 0]  # where it is 0 the bound holds whatever it is
    bound = rounding_bound(inputs, weight[neurons])
    gates = gate[:, neurons].double()
    least, most = (gates > bound).sum(dim=0), (gates > -bound).sum(dim=0)
    wrong = (counts[neurons] < least) | (counts[neurons] > most)
    result.bits += gate.numel()
    result.counts += counts.numel()
    result.differing += len(neurons)
    result.difference += int(differences.sum())
    result.unexplained += int(wrong.sum())
    result.examples.extend(
        f"{name}, neuron {neurons[at]}: {counts[neurons[at]]} in place of {least[at]} to {most[at]}"
        for at in wrong.nonzero()[: MOST_EXAMPLES - len(result.examples), 0]
    )
