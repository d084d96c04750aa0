"""The measures of the SPARCOM paper (arXiv 2505.21191), computed from archives; streams, and uses every core.

Needs numpy, zarr, numba, matplotlib and jinja2; neither torch nor vLLM, and it knows neither engine nor server.

    archive ─▶ rows, blocks ─▶ frequencies (eq. 6, 8) ─▶ selection (eq. 7, 9) ─▶ similarity (eq. 10), layers (figure 5)
                           └▶ routes ─▶ experts (eq. 11, 12, table 6) ─▶ correlation (eq. 13, 14)
            ─▶ components, lape · twins ─▶ alteration (eq. 15, 16, tables 1, 2), shift, venn (figure 6)
            ─▶ bootstrap, permutation, length_control: what chance and length explain
            ─▶ measure ─▶ results ─▶ summary ─▶ tables, figures, findings, lists ─▶ report
                       └▶ to_xarray: the same with named axes, for a notebook (docs/python.md); needs xarray
"""

from typing import TYPE_CHECKING, Any

from sparcom_analysis.components.experts import expert_components, expert_memberships
from sparcom_analysis.components.general_unique import Components, neuron_components
from sparcom_analysis.components.lape import Lape, LapeRates, lape
from sparcom_analysis.components.memberships import Memberships, neuron_memberships
from sparcom_analysis.components.pooled import PooledCounts, pooled_counts
from sparcom_analysis.components.result import ComponentResult, component_result
from sparcom_analysis.lists.long_tensors import as_index_lists, read_index_arrays, save_long_tensors
from sparcom_analysis.measures.correlation import (
    ExpertCorrelation,
    correlation_pairs,
    expert_correlation,
    instruction_correlations,
)
from sparcom_analysis.measures.experts import (
    CategoryExperts,
    InstructionExperts,
    TopExperts,
    category_experts,
    expert_frequencies,
    instruction_experts,
    top_experts,
    top_shares,
)
from sparcom_analysis.measures.frequencies import activation_counts, activation_frequencies
from sparcom_analysis.measures.layers import LayerCounts, isn_by_layer
from sparcom_analysis.measures.selection import InstructionNeurons, Selection, instruction_specific_neurons
from sparcom_analysis.measures.similarity import CategorySimilarity, category_similarity, similarity_pairs
from sparcom_analysis.pipeline import Analysis, analyze
from sparcom_analysis.reading.matched_tokens import TokenDraw
from sparcom_analysis.reading.populations import Population, populations
from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.statistics.bootstrap import (
    Interval,
    MeanIntervals,
    PairIntervals,
    Resamples,
    difference_intervals,
    draw_resamples,
    mean_intervals,
    pair_intervals,
)
from sparcom_analysis.statistics.length_control import LengthControl, MatchedExperts, MatchedNeurons, length_control
from sparcom_analysis.statistics.matrix_pair import MatrixPair
from sparcom_analysis.statistics.pair_matrix import PairMatrix
from sparcom_analysis.statistics.permutation import LabelTests, permutation_tests
from sparcom_analysis.tuned.alteration import (
    CategoryMeans,
    ExpertAlteration,
    NeuronAlteration,
    expert_alteration,
    neuron_alteration,
)
from sparcom_analysis.tuned.moved import moved_intervals
from sparcom_analysis.tuned.shift import ExpertShift, expert_shift
from sparcom_analysis.tuned.twins import Twins, match_twins
from sparcom_analysis.tuned.venn import InstructionVenn, venn_by_layer
from sparcom_data.archive import Archive, open_archive

if TYPE_CHECKING:
    from sparcom_analysis.labelled.results import to_xarray

__all__ = [
    "Analysis",
    "Archive",
    "CategoryExperts",
    "CategoryMeans",
    "CategorySimilarity",
    "ComponentResult",
    "Components",
    "ExpertAlteration",
    "ExpertCorrelation",
    "ExpertShift",
    "InstructionExperts",
    "InstructionNeurons",
    "InstructionVenn",
    "Interval",
    "LabelTests",
    "Lape",
    "LapeRates",
    "LayerCounts",
    "LengthControl",
    "MatchedExperts",
    "MatchedNeurons",
    "MatrixPair",
    "MeanIntervals",
    "Memberships",
    "Metrics",
    "NeuronAlteration",
    "PairIntervals",
    "PairMatrix",
    "PooledCounts",
    "Population",
    "Resamples",
    "Results",
    "Selection",
    "TokenDraw",
    "TopExperts",
    "Twins",
    "activation_counts",
    "activation_frequencies",
    "analyze",
    "as_index_lists",
    "category_experts",
    "category_similarity",
    "component_result",
    "correlation_pairs",
    "difference_intervals",
    "draw_resamples",
    "expert_alteration",
    "expert_components",
    "expert_correlation",
    "expert_frequencies",
    "expert_memberships",
    "expert_shift",
    "instruction_correlations",
    "instruction_experts",
    "instruction_specific_neurons",
    "isn_by_layer",
    "lape",
    "length_control",
    "match_twins",
    "mean_intervals",
    "moved_intervals",
    "neuron_alteration",
    "neuron_components",
    "neuron_memberships",
    "open_archive",
    "pair_intervals",
    "permutation_tests",
    "pooled_counts",
    "populations",
    "read_index_arrays",
    "save_long_tensors",
    "similarity_pairs",
    "to_xarray",
    "top_experts",
    "top_shares",
    "venn_by_layer",
]


def __getattr__(name: str) -> Any:
    """`to_xarray`, when it is first asked for: xarray and pandas take as long to import as all the rest."""
    if name != "to_xarray":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparcom_analysis.labelled.results import to_xarray

    return to_xarray


def __dir__() -> list[str]:
    """Public names, those that are not imported yet included: what a notebook completes."""
    return sorted({*globals(), *__all__})
