"""Variables and coordinates of labelled results: what the modules beside it build their datasets from.

    dimensions   instruction, category, category_2, layer, expert, neuron, rank
    coordinates  ids, names of categories, the model's numbers of its layers, numbers of experts and neurons from 0,
                 ranks from 1
    attributes   of a variable its units and, where there is one, its equation; of a dataset its parameters

Values are copied: a dataset that is changed in a notebook leaves the result that it came from as it was. Knows nothing
of what the values are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis.measures.selection import Selection
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.populations import Population
from sparcom_analysis.reading.rows import TokenFacts
from sparcom_analysis.statistics.bootstrap import Interval

CATEGORIES = ("category", "category_2")
Variables = dict[str, xr.Variable]


def variable(dims: Sequence[str], values: object, units: str, equation: str = "") -> xr.Variable:
    """A copy of the values with its dimensions, its units and the number of its equation."""
    attrs = {"units": units} | ({"equation": equation} if equation else {})
    return xr.Variable(tuple(dims), np.array(values), attrs)


def with_ends(name: str, middle: xr.Variable, interval: Interval | None) -> Variables:
    """The variable by its name and, of an interval, its ends as `NAME_low` and `NAME_high`."""
    found = {name: middle}
    if interval is not None:
        for end, values in (("low", interval.low), ("high", interval.high)):
            if values.shape != middle.shape:
                raise ValueError(
                    f"intervals must be of the same categories as {name}, shape {middle.shape}; they have shape "
                    f"{values.shape}. Draw them from the same instructions"
                )
            found[f"{name}_{end}"] = variable([str(dim) for dim in middle.dims], values, middle.attrs["units"])
    return found


def dataset(variables: Mapping[str, xr.Variable], coords: Mapping[str, object], **attrs: Any) -> xr.Dataset:
    """Put together; attributes that are None are left out."""
    return xr.Dataset(variables, coords, {name: value for name, value in attrs.items() if value is not None})


def pair_coords(categories: Sequence[str]) -> dict[str, object]:
    """Both axes of a matrix over categories."""
    return {name: list(categories) for name in CATEGORIES}


def instruction_coords(ids: Sequence[str], categories: Sequence[str]) -> dict[str, object]:
    """The axis of instructions, by id; `category` lies along it, so that `groupby("category")` works."""
    labels = category_labels(categories)
    names = [labels[code] for code in category_codes(categories)]
    return {"instruction": list(ids), "category": ("instruction", names)}


def neuron_coords(population: Population) -> dict[str, object]:
    """The axes of a population's neurons: layer, of routed experts expert, neuron."""
    experts = {"expert": np.arange(population.experts)} if population.routed else {}
    return {"layer": list(population.layer_ids), **experts, "neuron": np.arange(population.neurons)}


def measured_attrs(rows: str, facts: TokenFacts) -> dict[str, object]:
    """Whose tokens were counted, as attributes."""
    return {
        "rows": rows,
        "special_tokens": facts.special_tokens,
        "counted_tokens": facts.counted_tokens,
        "drawn_tokens": facts.drawn,
        "seed": None if facts.drawn is None else facts.seed,
    }


def selection_attrs(selection: Selection) -> dict[str, object]:
    """The rule of equation 7, as attributes."""
    return {"epsilon": selection.epsilon, "threshold": selection.threshold}
