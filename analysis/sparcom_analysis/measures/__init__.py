"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.finetuning import correlation, jaccard, routing_shift, venn
from sparcom_analysis.measures.finetuning import layers as finetuning_layers
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import layers, set_sizes, similarity

REGISTRY: tuple[Measure, ...] = (
    set_sizes.MEASURE,
    similarity.MEASURE,
    layers.MEASURE,
    jaccard.MEASURE,
    finetuning_layers.MEASURE,
    venn.MEASURE,
    correlation.MEASURE,
    routing_shift.MEASURE,
)
