"""Labelled results about general and unique components. See `results`."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import xarray as xr

from sparcom_analysis.components.draws import component_numbers
from sparcom_analysis.components.general_unique import Components, Kind
from sparcom_analysis.components.result import ComponentResult
from sparcom_analysis.labelled.labels import Variables, dataset, variable, with_ends
from sparcom_analysis.statistics.bootstrap import Interval

NUMBER = "components"
BY_CATEGORY = ("belonging", "unique")
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES = ("general_share", "unique_share")


def components(found: Components, *, sets: bool = False) -> xr.Dataset:
    """How many are general, shared, unique and belong, by layer; with `sets` which, as `general_set` and so on."""
    variables = {"instructions": variable(("category",), found.instructions, "instructions")}
    variables["needed"] = variable(("category",), found.needed, "instructions")
    for kind in KINDS:
        if kind in BY_CATEGORY:
            variables[kind] = variable(("category", "layer"), found.by_category(kind), NUMBER)
        else:
            variables[kind] = variable(("layer",), found.counts(kind), NUMBER)
    axes = _axes(found)
    if sets:
        variables |= _sets(found, axes)
    coords = {"category": list(found.categories)} | (axes if sets else {"layer": axes["layer"]})
    facts = {"component": found.component, "share": found.share, "reason": found.reason or None}
    return dataset(variables, coords, **facts)


def component_result(result: ComponentResult) -> xr.Dataset:
    """The same numbers with intervals, in all layers together (`NAME_total`), as shares, and what chance gives."""
    labelled, numbers, ends = components(result.found), component_numbers(result.found), result.intervals
    variables: Variables = {str(name): labelled.variables[name] for name in ("instructions", "needed")}
    for kind in KINDS:
        dims, values = labelled.variables[kind].dims, getattr(numbers, kind)
        interval = None if ends is None else Interval(getattr(ends.low, kind), getattr(ends.high, kind))
        for name, part in ((kind, slice(-1)), (f"{kind}_total", -1)):
            axes = [str(dim) for dim in dims if name == kind or dim != "layer"]
            own = None if interval is None else Interval(interval.low[..., part], interval.high[..., part])
            variables |= with_ends(name, variable(axes, values[..., part], NUMBER), own)
    for name in SHARES:
        own = None if ends is None else Interval(getattr(ends.low, name), getattr(ends.high, name))
        share = variable(("category",), getattr(numbers, name), "share of the category's components, 0 to 1")
        variables |= with_ends(name, share, own)
    coords = {str(name): values for name, values in labelled.coords.items()}
    return dataset(variables | _chance(result), coords, **labelled.attrs, **_parameters(result))


def _chance(result: ComponentResult) -> Variables:
    if (chance := result.chance) is None:
        return {}
    return {
        "general_chance": variable((), chance.general, NUMBER),
        "shared_chance": variable((), chance.shared, NUMBER),
        "unique_chance": variable(("category",), chance.unique, NUMBER),
        "unique_p_adjusted": variable(("category",), chance.p, "probability, 0 to 1"),
    }


def _parameters(result: ComponentResult) -> dict[str, object]:
    found: dict[str, object] = {}
    if (ends := result.intervals) is not None:
        found |= {"resamples": ends.resamples, "confidence": ends.confidence, "resamples_seed": ends.seed}
    if (chance := result.chance) is not None:
        found |= {"shuffles": chance.shuffles, "shuffles_seed": chance.seed}
    return found


def _axes(found: Components) -> dict[str, object]:
    """layer, and expert and neuron, or whichever of the two ids are of."""
    layers: dict[str, object] = {"layer": list(found.layer_ids)}
    if found.component == "expert":
        return layers | {"expert": np.arange(found.width)}
    experts = {"expert": np.arange(found.experts)} if found.routed else {}
    return layers | experts | {"neuron": np.arange(found.width)}


def _sets(found: Components, axes: dict[str, object]) -> Variables:
    masks: Variables = {}
    for kind in KINDS:
        if kind in BY_CATEGORY:
            every = np.array([found.mask(kind, code) for code in range(len(found.categories))])
            masks[f"{kind}_set"] = variable(("category", *axes), every, "whether it is one")
        else:
            masks[f"{kind}_set"] = variable(tuple(axes), found.mask(kind), "whether it is one")
    return masks


LABELLED: dict[type, Callable[..., xr.Dataset]] = {Components: components, ComponentResult: component_result}
