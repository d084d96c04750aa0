"""Labelled results about what fine-tuning alters: equations 15 and 16, figure 6, experts' shift. See `results`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from sparcom_analysis.labelled.experts import FREQUENCY, RANKED, SHARE, expert_coords, rank_coords
from sparcom_analysis.labelled.labels import dataset, instruction_coords, variable, with_ends
from sparcom_analysis.statistics.bootstrap import Interval, MeanIntervals
from sparcom_analysis.tuned.alteration import CategoryMeans, ExpertAlteration, NeuronAlteration
from sparcom_analysis.tuned.shift import ExpertShift
from sparcom_analysis.tuned.twins import Twins
from sparcom_analysis.tuned.venn import InstructionVenn
from sparcom_data.errors import InvalidInputError

ONE = ("instruction",)
BY_LAYER = ("instruction", "layer")
INDEX = "share of neurons, 0 to 1"


def neuron_alteration(altered: NeuronAlteration) -> xr.Dataset:
    """Equation 15 of each instruction, over all layers and in each."""
    variables = {
        "overlap": variable(ONE, altered.overlap, INDEX, "15"),
        "alteration": variable(ONE, altered.alteration, INDEX, "15"),
        "layer_overlap": variable(BY_LAYER, altered.layer_overlap, INDEX, "15"),
        "layer_alteration": variable(BY_LAYER, altered.layer_alteration, INDEX, "15"),
        "shared": variable(BY_LAYER, altered.shared, "neurons"),
        "base_count": variable(BY_LAYER, altered.base_counts, "neurons"),
        "tuned_count": variable(BY_LAYER, altered.tuned_counts, "neurons"),
    }
    coords = instruction_coords(altered.twins.ids, altered.twins.categories)
    coords["layer"] = list(altered.population.layer_ids)
    return dataset(variables, coords, component=altered.population.component, **_twin_attrs(altered.twins))


def expert_alteration(altered: ExpertAlteration) -> xr.Dataset:
    """Equation 16 of each instruction."""
    variables = {
        "correlation": variable(ONE, altered.correlation, "Pearson correlation, -1 to 1", "16"),
        "alteration": variable(ONE, altered.alteration, "1 - correlation, 0 to 2", "16"),
    }
    twins = altered.twins
    return dataset(variables, instruction_coords(twins.ids, twins.categories), **_twin_attrs(twins))


def category_means(
    means: CategoryMeans, *, layer_ids: Sequence[int] | None = None, intervals: MeanIntervals | None = None
) -> xr.Dataset:
    """Means by category and over all instructions, of values of an instruction or of its layers."""
    by_layer = means.mean.ndim == 2
    layers = len(layer_ids) if layer_ids is not None else None
    if means.mean.ndim > 2 or (means.mean.shape[1] if by_layer else None) != layers:
        raise InvalidInputError(
            f"means of shape {means.mean.shape} need as many layer_ids as they have layers, and none without; "
            f"there are {layers or 'none'}. Give layer_ids=neurons.layer_ids for values by layer"
        )
    dims = ("category", "layer") if by_layer else ("category",)
    by_category, overall = (None, None) if intervals is None else (intervals.by_category, intervals.overall)
    found = with_ends("mean", variable(dims, means.mean, "as the values"), by_category)
    found |= with_ends("overall", variable(dims[1:], means.overall, "as the values"), overall)
    found["counted"] = variable(dims, means.counted, "instructions")
    found["undefined"] = variable(dims, means.undefined, "instructions")
    coords: dict[str, object] = {"category": list(means.categories)}
    return dataset(found, coords if layer_ids is None else coords | {"layer": list(layer_ids)})


def expert_shift(shift: ExpertShift, *, intervals: Interval | None = None) -> xr.Dataset:
    """Equation 12 before and after, their difference, choices that moved, and table 6 of both with those that stay."""
    number = "number of the expert"
    variables = {
        "base": variable(FREQUENCY, shift.base.mean, SHARE, "12"),
        "tuned": variable(FREQUENCY, shift.tuned.mean, SHARE, "12"),
        "shift": variable(FREQUENCY, shift.shift, SHARE),
        "overall_shift": variable(FREQUENCY[1:], shift.overall_shift, SHARE),
        "base_top_expert": variable(RANKED, shift.base_top.expert, number),
        "tuned_top_expert": variable(RANKED, shift.tuned_top.expert, number),
        "kept": variable(RANKED, shift.kept, "whether it is among the tuned model's too"),
        "overall_base_top_expert": variable(RANKED[1:], shift.base_top.overall_expert, number),
        "overall_tuned_top_expert": variable(RANKED[1:], shift.tuned_top.overall_expert, number),
        "overall_kept": variable(RANKED[1:], shift.overall_kept, "whether it is among the tuned model's too"),
    }
    variables |= with_ends("moved", variable(FREQUENCY[:2], shift.moved, "choices a token"), intervals)
    names = ("matched", "only_base", "only_tuned", "different_rows")
    facts = {name: getattr(shift, name) for name in names}
    return dataset(variables, expert_coords(shift.base) | rank_coords(shift.base_top), **facts)


def instruction_venns(shown: Sequence[object], *, layer_ids: Sequence[int]) -> xr.Dataset:
    """Figure 6 of the instructions that `venn_by_layer` chose; `layer_ids` of the neurons that it is about."""
    venns = [one for one in shown if isinstance(one, InstructionVenn)]
    if not venns or len(venns) != len(shown):
        raise InvalidInputError("a list that can be labelled has one InstructionVenn or more, and nothing else")
    variables = {
        name: variable(BY_LAYER, np.array([getattr(one, name) for one in venns]), "neurons")
        for name in ("only_base", "both", "only_tuned")
    }
    variables["alteration"] = variable(ONE, [one.alteration for one in venns], INDEX, "15")
    coords: dict[str, object] = {
        "instruction": [one.id for one in venns],
        "category": ("instruction", [one.category for one in venns]),
        "layer": list(layer_ids),
    }
    return dataset(variables, coords)


def _twin_attrs(twins: Twins) -> dict[str, object]:
    return {
        "only_base": twins.only_base,
        "only_tuned": twins.only_tuned,
        "different_rows": twins.different_rows,
        "different_tokens": twins.different_tokens,
    }


LABELLED: dict[type, Callable[..., xr.Dataset]] = {
    NeuronAlteration: neuron_alteration,
    ExpertAlteration: expert_alteration,
    CategoryMeans: category_means,
    ExpertShift: expert_shift,
    list: instruction_venns,
}
