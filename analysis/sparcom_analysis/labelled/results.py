"""Results as labelled arrays of xarray, for notebooks: one function, `to_xarray`, for every kind of result.

    to_xarray(similarity)["similarity"].sel(category="CLS", category_2="SUM")

Each kind has a function of its own in a module `labelled_…`; here they are only registered. Computes nothing. Importing
this module imports xarray, which `import sparcom_analysis` does not.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import xarray as xr

from sparcom_analysis.labelled import components as labelled_components
from sparcom_analysis.labelled import experts as labelled_experts
from sparcom_analysis.labelled import neurons as labelled_neurons
from sparcom_analysis.labelled import statistics as labelled_statistics
from sparcom_analysis.labelled import tuned as labelled_tuning
from sparcom_data.errors import InvalidInputError


@singledispatch
def to_xarray(result: object, **options: Any) -> xr.Dataset:  # noqa: ARG001  (for the registered functions)
    """A result with its axes by name and its values by id, category, layer and expert.

    Args:
        result: any of the classes below. A value that does not exist is NaN, as in the result.

            InstructionNeurons          tokens, minimum_count, size, layer_count; with `sets=True` also member: bool
                                        (instruction, layer, neuron), one byte for every neuron of every instruction
            CategorySimilarity          similarity, without_self: (category, category_2), equation 10
            LayerCounts                 mean_count: (category, layer), figure 5
            InstructionExperts          tokens, count, frequency: (instruction, layer, expert), equation 11
            CategoryExperts             frequency: (category, layer, expert), overall: (layer, expert), equation 12
            TopExperts                  top_expert, frequency: (category, layer, rank), table 6
            ExpertCorrelation           correlation, without_self: (category, category_2), equation 14
            PairMatrix                  value: (instruction, instruction_2); `ids=` names them
            LabelTests                  within, between, p of the whole, of each category and of every two
            MatrixPair, MatchedNeurons, MatchedExperts, LengthControl
                                        plain, matched, difference: (category, category_2)
            Components, ComponentResult belonging, unique: (category, layer), shared, general: (layer); with `sets=True`
                                        of Components also which they are, bool
            Lape                        entropy: (selected,), frequency, specific: (category, selected)
            NeuronAlteration            overlap, alteration, layer_alteration, equation 15
            ExpertAlteration            correlation, alteration: (instruction,), equation 16
            CategoryMeans               mean, counted, undefined by category; `layer_ids=` where values are by layer
            ExpertShift                 base, tuned, shift: (category, layer, expert), moved: (category, layer), and
                                        table 6 of both
            list of InstructionVenn     only_base, both, only_tuned: (instruction, layer), figure 6; `layer_ids=`
        options: `sets`, `ids`, `layer_ids` as said above; `intervals`, of CategorySimilarity and ExpertCorrelation what
            `pair_intervals` found, of LayerCounts, CategoryExperts and CategoryMeans what `mean_intervals` found, of
            ExpertShift what `moved_intervals` found: their ends then stand beside each value as `NAME_low` and
            `NAME_high`.

    Returns:
        A dataset, whose variables carry units and equation as attributes, and which itself carries the parameters that
        the result knows. Its values are copies.

    Raises:
        InvalidInputError: the result is of no such class; the classes are listed.
        TypeError: an option that its class does not take.
    """
    known = ", ".join(sorted(kind.__name__ for kind in to_xarray.registry if kind not in (object, list)))
    raise InvalidInputError(
        f"a result that can be labelled is one of {known}, or a list of InstructionVenn; "
        f"{type(result).__name__} is none. Give intervals beside the measure that they are of: "
        "to_xarray(measure, intervals=...)"
    )


for _part in (labelled_neurons, labelled_experts, labelled_statistics, labelled_components, labelled_tuning):
    for _kind, _label in _part.LABELLED.items():
        to_xarray.register(_kind, _label)
