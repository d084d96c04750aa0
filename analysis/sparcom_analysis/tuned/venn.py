"""Where the neurons of single instructions lie before and after tuning: figure 6 of the paper.

Of an instruction, by layer: how many ISNs only the base model has, how many both have, how many only the tuned one has.
Shown are instructions that were asked for, or one of each category: the one whose alteration (equation 15) is nearest
the median of its category, so that it is neither the best nor the worst example; ties by the order in the base archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.tuned.alteration import NeuronAlteration
from sparcom_data.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class InstructionVenn:
    """The ISNs of one instruction by layer.

    id: in the archives. category: its label. alteration: equation 15, NaN where both sets are empty.
    only_base, both, only_tuned: int64 (layer,), neurons.
    """

    id: str
    category: str
    alteration: float
    only_base: NDArray[np.int64]
    both: NDArray[np.int64]
    only_tuned: NDArray[np.int64]


def venn_by_layer(altered: NeuronAlteration, ids: Sequence[str] | None = None) -> list[InstructionVenn]:
    """The chosen instructions, in this order; without `ids` the typical one of each category that has a value.

    Raises:
        InvalidInputError: an id is of no instruction that both archives have; every such id is said.
    """
    if ids is None:
        places = typical_places(altered)
    else:
        known = {name: k for k, name in enumerate(altered.twins.ids)}
        if problems := [
            f"an instruction to show must be complete in both archives; {name!r} is none of the {len(known)}. "
            "Give ids of instruction/id"
            for name in ids
            if name not in known
        ]:
            raise InvalidInputError(problems)
        places = [known[name] for name in ids]
    labels, codes = category_labels(altered.twins.categories), category_codes(altered.twins.categories)
    values = altered.alteration
    return [
        InstructionVenn(
            id=altered.twins.ids[k],
            category=labels[codes[k]],
            alteration=float(values[k]),
            only_base=altered.base_counts[k] - altered.shared[k],
            both=altered.shared[k],
            only_tuned=altered.tuned_counts[k] - altered.shared[k],
        )
        for k in places
    ]


def typical_places(altered: NeuronAlteration) -> list[int]:
    """Of each category the instruction whose alteration is nearest the median of the category."""
    values, codes = altered.alteration, category_codes(altered.twins.categories)
    places = []
    for code in range(int(codes.max()) + 1):
        own = np.flatnonzero((codes == code) & ~np.isnan(values))
        if len(own):
            distance = np.abs(values[own] - np.median(values[own]))
            places.append(int(own[distance.argmin()]))
    return places
