"""Measures of the SPARCOM paper (arXiv 2505.21191), computed from archives in streaming passes on all cores.

    import sparcom_analysis as sp

    base = sp.open_archive("base.zarr")
    isn = sp.find_isns(base, top=0.05)
    ds = sp.similarity(isn)
    sp.plot.similarity(ds)

Every measure returns an `xarray.Dataset`; `analyze` returns all of them as a tree. The package needs neither torch nor
vLLM. docs/python.md has an example for each research question.
"""

from sparcom_analysis import plot
from sparcom_analysis.compare import Comparison, compare
from sparcom_analysis.frequencies import activation_counts, activation_frequencies, expert_frequencies
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.isn import IsnSets, find_isns
from sparcom_analysis.measures.experts.routing_correlation import routing_correlation
from sparcom_analysis.measures.experts.top_experts import top_experts
from sparcom_analysis.measures.general_unique.general_unique import general_unique
from sparcom_analysis.measures.neurons.lape import lape
from sparcom_analysis.measures.neurons.layers import layers
from sparcom_analysis.measures.neurons.length_control import length_control
from sparcom_analysis.measures.neurons.similarity import similarity
from sparcom_analysis.measures.neurons.source_effect import source_effect
from sparcom_analysis.options import Options
from sparcom_analysis.report.export import read_metrics
from sparcom_analysis.report.run import analyze
from sparcom_analysis.report.write import write_report
from sparcom_data.archive import Archive, open_archive

__all__ = [
    "Archive",
    "Comparison",
    "ExpertCounts",
    "IsnSets",
    "Options",
    "activation_counts",
    "activation_frequencies",
    "analyze",
    "compare",
    "expert_frequencies",
    "find_ises",
    "find_isns",
    "general_unique",
    "lape",
    "layers",
    "length_control",
    "open_archive",
    "plot",
    "read_metrics",
    "routing_correlation",
    "similarity",
    "source_effect",
    "top_experts",
    "write_report",
]
