"""The measures of the SPARCOM paper (arXiv 2505.21191), computed from archives; streams, and uses every core.

Needs numpy, zarr, numba, matplotlib and jinja2; neither torch nor vLLM, and it knows neither engine nor server.

    archive ─▶ rows, blocks ─▶ frequencies (eq. 6, 8) ─▶ selection (eq. 7, 9) ─▶ similarity (eq. 10), layers (figure 5)
                           └▶ routes ─▶ experts (eq. 11, 12, table 6) ─▶ correlation (eq. 13, 14)
            ─▶ components, lape · twins ─▶ alteration (eq. 15, 16, tables 1, 2), tuning, venn (figure 6)
            ─▶ bootstrap, permutation, length_control: what chance and length explain
            ─▶ measure ─▶ results ─▶ summary ─▶ every_table, every_figure, every_list, report
                       └▶ to_xarray: the same with named axes, for a notebook (docs/python.md); needs xarray
"""

from typing import TYPE_CHECKING, Any

from sparcom_analysis.alteration import (
    CategoryMeans,
    ExpertAlteration,
    NeuronAlteration,
    expert_alteration,
    neuron_alteration,
)
from sparcom_analysis.bootstrap import (
    Interval,
    MeanIntervals,
    PairIntervals,
    Resamples,
    draw_resamples,
    mean_intervals,
    pair_intervals,
)
from sparcom_analysis.components import Components, neuron_components
from sparcom_analysis.components_result import ComponentResult, component_result
from sparcom_analysis.correlation import (
    ExpertCorrelation,
    correlation_pairs,
    expert_correlation,
    instruction_correlations,
)
from sparcom_analysis.expert_components import expert_components, expert_memberships
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
from sparcom_analysis.lape import Lape, LapeRates
from sparcom_analysis.lape import lape as lape_neurons  # `sparcom_analysis.lape` stays the module
from sparcom_analysis.layers import LayerCounts, isn_by_layer
from sparcom_analysis.length_control import LengthControl, MatchedNeurons, length_control
from sparcom_analysis.matched_tokens import TokenDraw
from sparcom_analysis.matrix_pair import MatrixPair
from sparcom_analysis.memberships import Memberships, neuron_memberships
from sparcom_analysis.pair_matrix import PairMatrix
from sparcom_analysis.permutation import LabelTests, permutation_tests
from sparcom_analysis.pipeline import Analysis, analyze
from sparcom_analysis.pooled import PooledCounts, pooled_counts
from sparcom_analysis.populations import Population, populations
from sparcom_analysis.results import Results
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons, Selection, instruction_specific_neurons
from sparcom_analysis.similarity import CategorySimilarity, category_similarity, similarity_pairs
from sparcom_analysis.tuning import ExpertShift, expert_shift
from sparcom_analysis.twins import Twins, match_twins
from sparcom_analysis.venn import InstructionVenn, venn_by_layer
from sparcom_data.archive import Archive, open_archive

if TYPE_CHECKING:
    from sparcom_analysis.labelled import to_xarray

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
    "category_experts",
    "category_similarity",
    "component_result",
    "correlation_pairs",
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
    "lape_neurons",
    "length_control",
    "match_twins",
    "mean_intervals",
    "neuron_alteration",
    "neuron_components",
    "neuron_memberships",
    "open_archive",
    "pair_intervals",
    "permutation_tests",
    "pooled_counts",
    "populations",
    "similarity_pairs",
    "to_xarray",
    "top_experts",
    "venn_by_layer",
]


def __getattr__(name: str) -> Any:
    """`to_xarray`, when it is first asked for: xarray and pandas take as long to import as all the rest."""
    if name != "to_xarray":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparcom_analysis.labelled import to_xarray

    return to_xarray


def __dir__() -> list[str]:
    """Public names, those that are not imported yet included: what a notebook completes."""
    return sorted({*globals(), *__all__})
