"""The measures of the SPARCOM paper (arXiv 2505.21191), computed from archives; streams, and uses every core.

Needs numpy, zarr, numba, matplotlib and jinja2; neither torch nor vLLM, and it knows neither engine nor server.

    archive ─▶ rows, blocks ─▶ frequencies (eq. 6) ─▶ selection (eq. 7) ─▶ similarity (eq. 10), layers (figure 5)
            ─▶ summary ─▶ tables, figures, report
"""

from sparcom_analysis.frequencies import activation_counts, activation_frequencies
from sparcom_analysis.layers import LayerCounts, isn_by_layer
from sparcom_analysis.pipeline import Analysis, analyze
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons, Selection, instruction_specific_neurons
from sparcom_analysis.similarity import CategorySimilarity, category_similarity
from sparcom_data.archive import Archive, open_archive

__all__ = [
    "Analysis",
    "Archive",
    "CategorySimilarity",
    "InstructionNeurons",
    "LayerCounts",
    "Metrics",
    "Selection",
    "activation_counts",
    "activation_frequencies",
    "analyze",
    "category_similarity",
    "instruction_specific_neurons",
    "isn_by_layer",
    "open_archive",
]
