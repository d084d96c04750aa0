"""Language activation probability entropy over categories (LAPE, Tang et al. 2024, arXiv 2402.16438).

LAPE compares categories, while equation 7 ranks neurons within one instruction.

1. p_ic is the fraction of category c's pooled tokens at which neuron i is active.
2. The filter is the k-th smallest of all N · C values p, k = round(0.95 · N · C). A neuron is dropped unless its
   largest p_ic exceeds the filter.
3. The entropy −Σ_c q_ic log q_ic of q_ic = p_ic / Σ_c p_ic is low if few categories use the neuron. The
   round(0.01 · N) neurons of lowest entropy are selected; fewer if fewer pass the filter.
4. A selected neuron is specific to each category where p_ic exceeds the bar, the k-th smallest p at a second rate.

As in the authors' code, rounding is half to even and comparisons are strict. There are two differences. Ties (entropies
equal to 1e-12) go to the lower index. Dropped neurons are never selected; the authors' code fills up with them.
Comparing p as float64 is exact: two different fractions of integers below 2^26 never round to the same float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis import plotting
from sparcom_analysis.archive.counted_rows import TokenDraw, counted_rows
from sparcom_analysis.frequencies import Progress, iterate_counts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.kernels.intersections import jaccard
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.general_unique.members import KINDS, find_members, membership_of
from sparcom_analysis.measures.measure import NotComputableError, dataset, measure
from sparcom_analysis.measures.text import among, count, decimal, listed, neurons_of
from sparcom_analysis.options import exact
from sparcom_analysis.pooled import PooledCounts, pool_for

TIE_DIGITS = 12
BLOCK_NEURONS = 1 << 16  # neurons converted to float64 p at once


def lape(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Select the neurons with the lowest activation entropy over categories (LAPE).

    Args:
        isn: ISN sets; without counts from `find_isns(..., pool=True)`, the archive is read once more.
        **changes: `lape_top`, `lape_filter`, `lape_bar`, `min_share`; see `Options`.

    Returns:
        value (category): selected neurons specific to the category; layer_value (category, layer).
        jaccard_with_unique (category): Jaccard index of specific and unique neurons; NaN if both sets are empty.
        tokens (category): pooled tokens. Attributes `filter`, `bar`: thresholds of p; `passed`, `wanted`, `selected`:
        neurons that pass the filter, to select, and selected.
        member_layer, member_expert, member_neuron, entropy (member), frequency, specific (category, member): the
        selected neurons, lowest entropy first. Entropy is in nats; frequency is p.

    Raises:
        NotComputableError: there is one category, or the counts do not fit into memory.
    """
    isn = isn.with_options(**changes)
    part, options, labels = isn.population, isn.options, isn.labels
    if len(labels) == 1:
        raise NotComputableError("LAPE needs at least two categories; with one, the entropy of every neuron is 0.")
    pooled = _pooled(isn, progress)
    least, bar = (_kth_smallest(pooled, rate) for rate in (options.lape_filter, options.lape_bar))
    neuron, entropy = _entropies(pooled, least)
    wanted, passed = round(exact(options.lape_top) * part.total), len(neuron)
    first = np.argsort(entropy, kind="stable")[:wanted]
    neuron, entropy = neuron[first], entropy[first]
    specific = (frequency := _frequencies(pooled, neuron)) > bar
    layer, within = np.divmod(neuron, part.width)
    by_layer = np.stack([np.bincount(layer[own], minlength=part.layers) for own in specific])
    unit, entry = {"long_name": "specific neurons", "units": "neurons"}, ("category", "member")
    variables: dict[str, Any] = {
        "value": ("category", specific.sum(axis=1), unit),
        "layer_value": (("category", "layer"), by_layer, unit),
        "jaccard_with_unique": ("category", _jaccard_with_unique(isn, neuron, specific)),
        "tokens": ("category", pooled.tokens),
        "member_layer": ("member", np.array(part.layer_ids)[layer]),
        "member_neuron": ("member", within % part.neurons),
        "entropy": ("member", entropy, {"units": "nats"}),
        "frequency": (entry, frequency),
        "specific": (entry, specific),
    }
    if part.routed:
        variables["member_expert"] = ("member", within // part.neurons)
    found: dict[str, Any] = {"filter": least, "bar": bar, "passed": passed, "wanted": wanted, "selected": len(neuron)}
    found |= {name: getattr(options, name) for name in ("lape_top", "lape_filter", "lape_bar", "min_share")}
    found |= {"neurons_per_expert": part.neurons if part.routed else None, "measure": MEASURE.name}
    found["model_layers"] = isn.archive.attributes.model.layers
    return dataset(isn, variables, {"category": labels, "layer": list(part.layer_ids)}, **found)


def _pooled(isn: IsnSets, progress: Progress | None) -> PooledCounts:
    """Return the pooled counts of the sets, or read them again if the instructions or groups differ."""
    pooled, labels = isn.pooled, isn.labels
    if pooled is not None and pooled.categories == labels and np.array_equal(pooled.codes, isn.codes):
        return pooled
    pooled, reason = pool_for(isn.population, isn.categories, isn.tokens)
    if pooled is None:
        raise NotComputableError(reason)
    facts = isn.token_facts
    draw = None if facts.drawn is None else TokenDraw(facts.drawn, facts.seed)
    spans = counted_rows(isn.archive, isn.options, draw)
    spans = spans.only(np.isin(spans.instruction, isn.instruction))
    place = {index: k for k, index in enumerate(isn.instruction.tolist())}
    for k, counts in iterate_counts(isn.archive, spans, isn.population, progress=progress):
        pooled.add(place[int(spans.instruction[k])], counts)
    return pooled


def _kth_smallest(pooled: PooledCounts, rate: float) -> float:
    """Return the k-th smallest of all p, k = round(rate · N · C), at least 1, from the unique values and counts."""
    k = max(1, round(exact(rate) * pooled.counts.size))
    each = [np.unique(counts, return_counts=True) for counts in pooled.counts]
    values = np.concatenate([own / np.float64(t) for (own, _), t in zip(each, pooled.tokens, strict=True)])
    order = np.argsort(values, kind="stable")
    reached = np.concatenate([times for _, times in each])[order].cumsum()
    return float(values[order][np.searchsorted(reached, k)])


def _entropies(pooled: PooledCounts, least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the neurons with a p above `least`, ascending: int64 (m,), and their entropies: float64 (m,)."""
    neurons, entropies = [], []
    for first in range(0, pooled.population.total, BLOCK_NEURONS):
        block = _frequencies(pooled, slice(first, first + BLOCK_NEURONS))
        passed = np.flatnonzero((block > least).any(axis=0))
        ordered = np.sort(block[:, passed], axis=0)  # makes the float sum independent of category order
        total, entropy = sum(ordered), np.zeros(len(passed))  # row by row: numpy's order differs for one column
        for row in ordered:
            q = row / total
            entropy -= q * np.log(q, out=np.zeros_like(q), where=q > 0)
        neurons.append(passed + first)
        entropies.append(entropy.round(TIE_DIGITS) + 0.0)  # turns −0 into 0
    return np.concatenate(neurons), np.concatenate(entropies)


def _frequencies(pooled: PooledCounts, neurons: Any) -> NDArray[np.float64]:
    """Return p of these neurons: float64 (c, m)."""
    return np.asarray(pooled.counts[:, neurons] / pooled.tokens[:, None].astype(np.float64))


def _jaccard_with_unique(isn: IsnSets, neuron: NDArray[np.int64], specific: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the Jaccard index of each category's specific and unique neurons: float64 (c,)."""
    part, members = isn.population, find_members(membership_of(isn), isn.options.min_share)
    flat = (members.layer * part.experts + members.expert) * part.neurons + members.neuron
    unique = members.kind == KINDS.index("unique")
    groups = [(neuron[own], flat[unique & (members.category == code)]) for code, own in enumerate(specific)]
    sizes = [(len(np.intersect1d(left, right)), len(left), len(right)) for left, right in groups]
    return jaccard(*np.array(sizes, dtype=np.int64).T)


def sentences(ds: xr.Dataset) -> list[str]:
    (selected, passed, wanted), title = (ds.attrs[name] for name in ("selected", "passed", "wanted")), neurons_of(ds)
    values, jaccard = ds["value"], ds["jaccard_with_unique"]
    if not selected:
        return [f"LAPE selects no {title}: {count(passed)} pass the filter, {count(wanted)} are requested."]
    text = f"LAPE selects {count(selected)} of the {count(ds.attrs['neurons'])} {title} by entropy over categories"
    if not (largest := int(values.max())):
        return [f"{text}; none is specific to a category."]
    most = names(ds.isel(category=np.flatnonzero(values == largest)))
    has, each = ("has", "") if len(most) == 1 else ("have", " each")
    found = [f"{text}; {listed(most)} {has} the most specific neurons, {count(largest)}{each}."]
    if not np.isnan(mean := float(jaccard.mean())):
        found.append(f"The Jaccard index of a category's specific and unique neurons is {decimal(mean)} on average.")
    return found


def caption(ds: xr.Dataset) -> str:
    return (
        f"Category-specific neurons by LAPE (Tang et al. 2024), {ds.attrs['model']}{among(ds, ', ')}. LAPE selects "
        f"{100 * ds.attrs['lape_top']:.4g} % of all neurons. Neurons specific to several categories count in each."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw stacked bars over the layers, one segment per category, into `ax`; style: see `plotting.stacked`."""
    parts = dict(zip(names(ds), ds["layer_value"].values, strict=True))
    style = {"label": "specific neurons", "title": ds.attrs["model"]} | style
    ax = plotting.stacked(ds["layer"].values.tolist(), parts, ax=ax, **style)
    ax.locator_params(axis="y", integer=True)
    return ax


MEASURE = measure(
    lape,
    "Neurons specific to a category by activation entropy (LAPE)",
    "Tang et al. 2024 (LAPE)",
    "isn",
    "Each neuron is active at a fraction of each category's tokens. Normalized over categories, these fractions have a "
    "low entropy if few categories use the neuron. LAPE selects the neurons of lowest entropy that pass a filter. A "
    "neuron is specific to each category where its fraction exceeds a bar.",
)
