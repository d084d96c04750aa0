"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.general_unique import experts as unique_experts
from sparcom_analysis.measures.general_unique import neurons as unique_neurons
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import lape, similarity

REGISTRY: tuple[Measure, ...] = (
    similarity.MEASURE,
    unique_neurons.MEASURE,
    unique_experts.MEASURE,
    unique_experts.MOST_USED,
    lape.MEASURE,
)
