"""Every measure: one file each, listed here in the order of the report."""

from __future__ import annotations

from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.measures.neurons import similarity

REGISTRY: tuple[Measure, ...] = (similarity.MEASURE,)
