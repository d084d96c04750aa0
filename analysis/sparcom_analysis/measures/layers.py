"""In which layers the ISNs of each category lie: figure 5 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.reading.categories import category_codes, category_labels


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """ISNs by layer and category.

    categories: c names, in order of first appearance. layer_ids: the model's number of each layer.
    mean_count: float64 (c, layer), ISNs of an instruction of the category in the layer, averaged over its instructions.
    """

    categories: Sequence[str]
    layer_ids: Sequence[int]
    mean_count: NDArray[np.float64]


def isn_by_layer(neurons: InstructionNeurons) -> LayerCounts:
    """Mean number of ISNs an instruction of each category has in each layer."""
    labels = category_labels(neurons.categories)
    codes = category_codes(neurons.categories)
    sums = np.zeros((len(labels), len(neurons.layer_ids)), dtype=np.int64)
    np.add.at(sums, codes, neurons.layer_counts)
    members = np.bincount(codes, minlength=len(labels))
    return LayerCounts(labels, list(neurons.layer_ids), sums / members[:, None])
