"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.neurons import similarity
from sparcom_analysis.measures.neurons import source_effect
from sparcom_analysis.measures.neurons import length_control
from sparcom_analysis.measures.neurons import lape
from sparcom_analysis.measures.experts import routing_correlation
from sparcom_analysis.measures.experts import length_control as routing_length_control
from sparcom_analysis.measures.experts import expert_frequencies
from sparcom_analysis.measures.experts import top_experts
from sparcom_analysis.measures.general_unique import experts as general_unique_experts
from sparcom_analysis.measures.finetuning import top_experts as finetuning_top_experts
from sparcom_analysis.measures.measure import Measure

REGISTRY: tuple[Measure, ...] = (
    similarity.MEASURE,
    source_effect.MEASURE,
    length_control.MEASURE,
    lape.MEASURE,
    routing_correlation.MEASURE,
    source_effect.ROUTING_MEASURE,
    routing_length_control.MEASURE,
    expert_frequencies.MEASURE,
    top_experts.MEASURE,
    general_unique_experts.MEASURE,
    general_unique_experts.MOST_USED,
    finetuning_top_experts.MEASURE,
)
