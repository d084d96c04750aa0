"""Language activation probability entropy over categories (LAPE, Tang et al. 2024, arXiv 2402.16438).

A second way of selecting neurons: it compares categories, while equation 7 ranks neurons within an instruction.

1. p_ic is the share of all pooled tokens of category c's instructions at which neuron i is active.
2. The filter is the k-th smallest of all N · C values p, k = round(0.95 · N · C). A neuron whose largest p_ic is not
   above it is dropped.
3. The entropy −Σ_c q_ic log q_ic of q_ic = p_ic / Σ_c p_ic is low if few categories use the neuron. The round(0.01 · N)
   neurons of lowest entropy are selected; fewer if fewer passed the filter.
4. A selected neuron is specific to each category in which p_ic is above the bar, the k-th smallest p by a second rate.

Rounding is half to even and comparison strict, as in the authors' code. Two things differ: of equal neurons (entropies
are rounded to twelve digits) the lower index comes first, and a dropped neuron is never selected; theirs fills up with
them. p as float64 decides nothing: quotients of whole numbers below 2^26 differ as floats, or are equal.
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
BLOCK_NEURONS = 1 << 16  # neurons whose p are held as floats at once


def lape(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the neurons whose activity is spread over the fewest categories, by entropy (LAPE).

    Args:
        isn: the sets; with `find_isns(..., pool=True)` they hold the counts, otherwise the archive is read once more.
        **changes: `lape_top`, `lape_filter`, `lape_bar`, `min_share`: see `Options`.

    Returns:
        value (category): selected neurons specific to the category; layer_value (category, layer).
        jaccard_with_unique (category): Jaccard index with its unique neurons; NaN if there are none of both.
        tokens (category): pooled tokens. Attributes `filter`, `bar`: the values of p to be above; `passed`, `wanted`,
        `selected`: neurons that passed the filter, neurons to select, neurons selected.
        member_layer, member_expert, member_neuron, entropy (member), frequency, specific (category, member): the
        selected neurons, lowest entropy first. Entropy is in nats, frequency is p.

    Raises:
        NotComputableError: there is one category, or the counts do not fit into memory.
    """
    isn = isn.with_options(**changes)
    part, options, labels = isn.population, isn.options, isn.labels
    if len(labels) == 1:
        raise NotComputableError("LAPE needs at least two categories: over one, the entropy of every neuron is 0.")
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
    """Return the counts per category that the sets hold, or read them if they are of other instructions or groups."""
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
    """Return the k-th smallest of all p, k = round(rate · N · C), at least 1, from the p that occur and how often."""
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
        ordered = np.sort(block[:, passed], axis=0)  # the same p in other categories then give the same digits
        total, entropy = sum(ordered), np.zeros(len(passed))  # row by row: numpy adds a lone column in another order
        for row in ordered:
            q = row / total
            entropy -= q * np.log(q, out=np.zeros_like(q), where=q > 0)
        neurons.append(passed + first)
        entropies.append(entropy.round(TIE_DIGITS) + 0.0)  # no −0
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
        return [f"LAPE selects no {title}: {count(passed)} pass the filter, {count(wanted)} are wanted."]
    text = f"LAPE selects {count(selected)} of the {count(ds.attrs['neurons'])} {title} by entropy over categories"
    if not (largest := int(values.max())):
        return [f"{text}; none of them is specific to a category."]
    most = names(ds.isel(category=np.flatnonzero(values == largest)))
    has, each = ("has", "") if len(most) == 1 else ("have", " each")
    found = [f"{text}; {listed(most)} {has} the most specific neurons, {count(largest)}{each}."]
    if not np.isnan(mean := float(jaccard.mean())):
        found.append(f"The mean Jaccard index of a category's specific and unique neurons is {decimal(mean)}.")
    return found


def caption(ds: xr.Dataset) -> str:
    return (
        f"Neurons of each category by LAPE (Tang et al. 2024), {ds.attrs['model']}{among(ds, ', ')}. Of all, "
        f"{100 * ds.attrs['lape_top']:.4g} % are selected. One that is specific to several categories counts in each."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw stacked bars over the layers, one part per category, into `ax`; style: see `plotting.stacked`."""
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
    "The share of a category's tokens at which a neuron is active, normalized over categories, has an entropy that is "
    "low if few categories use the neuron. Neurons of lowest entropy are selected among those that pass a filter; one "
    "is specific to each category in which its share is above a bar.",
)
