"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import similarity, source_effect

REGISTRY: tuple[Measure, ...] = (similarity.MEASURE, source_effect.MEASURE, source_effect.ROUTING_MEASURE)
