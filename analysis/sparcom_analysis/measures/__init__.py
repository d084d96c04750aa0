"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.experts import expert_frequencies, routing_correlation, top_experts
from sparcom_analysis.measures.finetuning import top_experts as finetuning_top_experts
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import similarity

REGISTRY: tuple[Measure, ...] = (
    similarity.MEASURE,
    routing_correlation.MEASURE,
    expert_frequencies.MEASURE,
    top_experts.MEASURE,
    finetuning_top_experts.MEASURE,
)
