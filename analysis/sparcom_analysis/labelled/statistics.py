"""Labelled results about chance and length: pairs, tests, matched measures. See `results`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xarray as xr

from sparcom_analysis.labelled.labels import (
    CATEGORIES,
    Variables,
    dataset,
    instruction_coords,
    pair_coords,
    variable,
    with_ends,
)
from sparcom_analysis.reading.categories import category_labels
from sparcom_analysis.statistics.length_control import LengthControl, MatchedExperts, MatchedNeurons
from sparcom_analysis.statistics.matrix_pair import MatrixPair
from sparcom_analysis.statistics.pair_matrix import PairMatrix
from sparcom_analysis.statistics.permutation import LabelTests
from sparcom_data.errors import InvalidInputError

P = "probability, 0 to 1"
MEAN = "mean over pairs"


def pair_matrix(pairs: PairMatrix, *, ids: Sequence[str] | None = None) -> xr.Dataset:
    """The value of every pair; instructions are numbered from 0 where their ids are not given."""
    if ids is not None and len(ids) != len(pairs):
        raise InvalidInputError(
            f"there must be an id for each of the {len(pairs)} instructions; there are {len(ids)}. Give neurons.ids"
        )
    names = [str(k) for k in range(len(pairs))] if ids is None else list(ids)
    coords = instruction_coords(names, pairs.categories)
    categories = [category_labels(pairs.categories)[code] for code in pairs.codes]
    coords |= {"instruction_2": names, "category_2": ("instruction_2", categories)}
    value = variable(("instruction", "instruction_2"), pairs.values, "Jaccard index or Pearson correlation")
    return dataset({"value": value}, coords)


def label_tests(tests: LabelTests) -> xr.Dataset:
    """Means and p of the whole matrix, of each category and of every two."""
    variables = {name: variable((), getattr(tests, name), MEAN) for name in ("within", "between", "expected")}
    variables |= {"p": variable((), tests.p, P)}
    variables |= {
        name: variable(CATEGORIES[:1], getattr(tests, name), MEAN) for name in ("category_within", "category_others")
    }
    variables |= {
        name: variable(CATEGORIES[:1], getattr(tests, name), P) for name in ("category_p", "category_p_adjusted")
    }
    variables |= {name: variable(CATEGORIES, getattr(tests, name), P) for name in ("pair_p", "pair_p_adjusted")}
    facts = {"instructions": tests.instructions, "permutations": tests.permutations, "seed": tests.seed}
    return dataset(variables, pair_coords(tests.categories), **facts)


def matrix_pair(pair: MatrixPair) -> xr.Dataset:
    """One measure plain and with T matched."""
    return dataset(_matrices(pair), pair_coords(pair.categories))


def matched_neurons(matched: MatchedNeurons) -> xr.Dataset:
    """Equation 10 plain and with T matched, with and without pairs of an instruction with itself."""
    facts = matched.matched.token_facts
    return dataset(
        _matrices(matched.similarity, "similarity", "10") | _matrices(matched.without_self, "without_self", "10"),
        pair_coords(matched.similarity.categories),
        component=matched.plain.population.component,
        drawn_tokens=facts.drawn,
        seed=facts.seed,
        too_short=facts.too_short,
    )


def matched_experts(matched: MatchedExperts) -> xr.Dataset:
    """Equation 14 plain and with T matched, with and without pairs of an instruction with itself."""
    both = _matrices(matched.correlation, "correlation", "14") | _matrices(matched.without_self, "without_self", "14")
    return dataset(both, pair_coords(matched.correlation.categories))


def length_control(control: LengthControl) -> xr.Dataset:
    """The same of every component, along `component`; and of experts."""
    parts = []
    for one in control.neurons:
        part = matched_neurons(one)
        parts.append(part.expand_dims(component=[part.attrs.pop("component")]))
    found: xr.Dataset = xr.concat(parts, dim="component", combine_attrs="override")
    if control.experts is None:
        return found
    experts = control.experts
    found = found.assign(_matrices(experts.correlation, "expert_correlation", "14"))
    return found.assign(_matrices(experts.without_self, "expert_without_self", "14"))


def _matrices(pair: MatrixPair, name: str = "", equation: str = "") -> Variables:
    before = f"{name}_" if name else ""
    found: Variables = {}
    for key in ("plain", "matched", "difference"):
        ends = None if pair.intervals is None else getattr(pair.intervals, key)
        found |= with_ends(f"{before}{key}", variable(CATEGORIES, getattr(pair, key), MEAN, equation), ends)
    return found


LABELLED: dict[type, Callable[..., xr.Dataset]] = {
    PairMatrix: pair_matrix,
    LabelTests: label_tests,
    MatrixPair: matrix_pair,
    MatchedNeurons: matched_neurons,
    MatchedExperts: matched_experts,
    LengthControl: length_control,
}
