"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.general_unique import experts as general_unique_experts
from sparcom_analysis.measures.general_unique import neurons as general_unique
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import lape, similarity

REGISTRY: tuple[Measure, ...] = (
    similarity.MEASURE,
    general_unique.MEASURE,
    general_unique_experts.MEASURE,
    general_unique_experts.MOST_USED,
    lape.MEASURE,
)
