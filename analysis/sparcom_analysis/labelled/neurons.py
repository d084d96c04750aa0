"""Labelled results about instruction-specific neurons: sets, similarity, layers, LAPE. See `results`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from sparcom_analysis.components.lape import Lape
from sparcom_analysis.labelled.labels import (
    CATEGORIES,
    dataset,
    instruction_coords,
    measured_attrs,
    neuron_coords,
    pair_coords,
    selection_attrs,
    variable,
    with_ends,
)
from sparcom_analysis.measures.layers import LayerCounts
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.measures.similarity import CategorySimilarity
from sparcom_analysis.statistics.bootstrap import MeanIntervals, PairIntervals

JACCARD = "mean Jaccard index, 0 to 1"


def instruction_neurons(neurons: InstructionNeurons, *, sets: bool = False) -> xr.Dataset:
    """T, thresholds and sizes of each instruction's set; with `sets` which neurons are in it."""
    one, population = ("instruction",), neurons.population
    variables = {
        "tokens": variable(one, neurons.tokens, "tokens"),
        "minimum_count": variable(one, neurons.minimum_count, "tokens", "7"),
        "size": variable(one, neurons.sizes, "neurons"),
        "layer_count": variable(("instruction", "layer"), neurons.layer_counts, "neurons"),
    }
    coords = instruction_coords(neurons.ids, neurons.categories)
    axes = neuron_coords(population)
    if sets:
        members = np.empty((len(neurons), *neurons.mask(0).shape), dtype=np.bool_)
        for k in range(len(neurons)):
            members[k] = neurons.mask(k)
        equation = "9" if population.routed else "7"
        attrs = {"units": "whether the neuron is an ISN", "equation": equation}
        variables["member"] = xr.Variable(("instruction", *axes), members, attrs)  # fresh: a copy would take twice
    else:
        axes = {"layer": axes["layer"]}
    return dataset(
        variables,
        coords | axes,
        component=population.component,
        neurons=population.total,
        **selection_attrs(neurons.selection),
        **measured_attrs(neurons.rows, neurons.token_facts),
    )


def category_similarity(similarity: CategorySimilarity, *, intervals: PairIntervals | None = None) -> xr.Dataset:
    """Equation 10 with and without pairs of an instruction with itself."""
    ends = (None, None) if intervals is None else (intervals.with_self, intervals.without_self)
    with_self = variable(CATEGORIES, similarity.matrix, JACCARD, "10")
    without_self = variable(CATEGORIES, similarity.without_self, JACCARD, "10")
    found = with_ends("similarity", with_self, ends[0]) | with_ends("without_self", without_self, ends[1])
    return dataset(found, pair_coords(similarity.categories))


def layer_counts(counts: LayerCounts, *, intervals: MeanIntervals | None = None) -> xr.Dataset:
    """ISNs of an instruction by category and layer."""
    mean = variable(("category", "layer"), counts.mean_count, "neurons an instruction")
    found = with_ends("mean_count", mean, None if intervals is None else intervals.by_category)
    return dataset(found, {"category": list(counts.categories), "layer": list(counts.layer_ids)})


def lape_neurons(found: Lape) -> xr.Dataset:
    """The selected neurons, lowest entropy first, with layer, expert and number of each along `selected`."""
    part = found.population
    places = np.unravel_index(found.neuron, (part.layers, part.experts, part.neurons))
    coords: dict[str, object] = {
        "category": list(found.categories),
        "layer": ("selected", np.array(part.layer_ids, dtype=np.int64)[places[0]]),
        "neuron": ("selected", places[2]),
    }
    if part.routed:
        coords["expert"] = ("selected", places[1])
    both = ("category", "selected")
    variables = {
        "entropy": variable(("selected",), found.entropy, "nats"),
        "frequency": variable(both, found.frequency, "share of tokens, 0 to 1"),
        "specific": variable(both, found.specific, "whether the neuron is specific to the category"),
        "tokens": variable(("category",), found.tokens, "tokens"),
    }
    rates = {"top_rate": found.rates.top, "filter_rate": found.rates.filter, "bar_rate": found.rates.bar}
    facts = {"filter": found.filter, "bar": found.bar, "passed": found.passed, "wanted": found.wanted}
    return dataset(variables, coords, component=part.component, reason=found.reason or None, **rates, **facts)


LABELLED: dict[type, Callable[..., xr.Dataset]] = {
    InstructionNeurons: instruction_neurons,
    CategorySimilarity: category_similarity,
    LayerCounts: layer_counts,
    Lape: lape_neurons,
}
