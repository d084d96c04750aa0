"""Registry of all measures, in the order of the report; each measure has its own file."""

from __future__ import annotations

from sparcom_analysis.measures.experts import expert_frequencies, routing_correlation, routing_entropy, top_experts
from sparcom_analysis.measures.experts import length_control as routing_length_control
from sparcom_analysis.measures.finetuning import correlation, jaccard, routing_shift, venn
from sparcom_analysis.measures.finetuning import layers as finetuning_layers
from sparcom_analysis.measures.finetuning import top_experts as finetuning_top_experts
from sparcom_analysis.measures.general_unique import general_unique as unique_members
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import lape, layers, length_control, set_sizes, similarity, source_effect

REGISTRY: tuple[Measure, ...] = (
    similarity.MEASURE,
    layers.MEASURE,
    set_sizes.MEASURE,
    source_effect.MEASURE,
    length_control.MEASURE,
    unique_members.MEASURE,
    lape.MEASURE,
    routing_correlation.MEASURE,
    source_effect.ROUTING_MEASURE,
    routing_length_control.MEASURE,
    expert_frequencies.MEASURE,
    top_experts.MEASURE,
    routing_entropy.MEASURE,
    unique_members.EXPERTS,
    unique_members.MOST_USED,
    jaccard.MEASURE,
    finetuning_layers.MEASURE,
    venn.MEASURE,
    correlation.MEASURE,
    routing_shift.MEASURE,
    finetuning_top_experts.MEASURE,
)
