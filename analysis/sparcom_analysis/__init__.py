"""The measures of the SPARCOM paper (arXiv 2505.21191), computed from archives; streams, and uses every core.

Needs numpy, zarr, numba, matplotlib and jinja2; neither torch nor vLLM, and it knows neither engine nor server.

    archive ─▶ rows, blocks ─▶ frequencies (eq. 6, 8) ─▶ selection (eq. 7, 9) ─▶ similarity (eq. 10), layers (figure 5)
                           └▶ routes ─▶ experts (eq. 11, 12, table 6) ─▶ correlation (eq. 13, 14), tuning
            ─▶ summary ─▶ tables, figures, report
"""

from sparcom_analysis.correlation import ExpertCorrelation, expert_correlation, instruction_correlations
from sparcom_analysis.experts import (
    CategoryExperts,
    InstructionExperts,
    TopExperts,
    category_experts,
    expert_frequencies,
    instruction_experts,
    top_experts,
)
from sparcom_analysis.frequencies import activation_counts, activation_frequencies
from sparcom_analysis.layers import LayerCounts, isn_by_layer
from sparcom_analysis.pipeline import Analysis, analyze
from sparcom_analysis.populations import Population, populations
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons, Selection, instruction_specific_neurons
from sparcom_analysis.similarity import CategorySimilarity, category_similarity
from sparcom_analysis.tuning import ExpertShift, expert_shift
from sparcom_data.archive import Archive, open_archive

__all__ = [
    "Analysis",
    "Archive",
    "CategoryExperts",
    "CategorySimilarity",
    "ExpertCorrelation",
    "ExpertShift",
    "InstructionExperts",
    "InstructionNeurons",
    "LayerCounts",
    "Metrics",
    "Population",
    "Selection",
    "TopExperts",
    "activation_counts",
    "activation_frequencies",
    "analyze",
    "category_experts",
    "category_similarity",
    "expert_correlation",
    "expert_frequencies",
    "expert_shift",
    "instruction_correlations",
    "instruction_experts",
    "instruction_specific_neurons",
    "isn_by_layer",
    "open_archive",
    "populations",
    "top_experts",
]
