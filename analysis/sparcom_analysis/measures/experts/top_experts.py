"""Most used experts per category: in the whole model by count (SPARCOM, app. F, table 6), and per layer (ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.drawing import layer_curves
from sparcom_analysis.measures.measure import Variable, bounds, dataset, frames, means, measure
from sparcom_analysis.measures.text import count, decimal, interval
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import GroupMeans, group_means

TIE_DIGITS = 12  # means equal to 1e-12 are ties: float sums differ in the sixteenth digit
RANKS = ("category", "layer", "rank")


def most_frequent(frequency: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Return the indices of the k largest values along the last axis, in descending order; ties by lower index."""
    return np.argsort(-frequency.round(TIE_DIGITS), axis=-1, kind="stable")[..., :k]


def counted_ranks(experts: ExpertCounts) -> dict[str, Variable]:
    """Return table 6 of the paper: the experts with the most activations over a category's instructions.

    `paper_layer`, `paper_expert`, `paper_count` (category, paper_rank) rank the experts of all layers; ties go to the
    lower layer and id. `id_expert`, `id_count` (category, rank) rank expert ids by counts summed over layers.
    """
    counts = np.zeros((len(experts.labels), *experts.counts.shape[1:]), np.int64)
    np.add.at(counts, experts.codes, experts.counts)
    whole, pooled = counts.reshape(len(counts), -1), counts.sum(axis=1)
    top, ids = (most_frequent(values, experts.options.top_experts) for values in (whole, pooled))
    layer, expert = np.divmod(top, experts.experts)
    cells, of_ids = ("category", "paper_rank"), ("category", "rank")
    return {
        "paper_layer": (cells, np.array(experts.layer_ids)[layer]),
        "paper_expert": (cells, expert),
        "paper_count": (cells, np.take_along_axis(whole, top, axis=1), {"long_name": "activations of the expert"}),
        "id_expert": (of_ids, ids),
        "id_count": (of_ids, np.take_along_axis(pooled, ids, axis=1), {"long_name": "activations of the expert id"}),
    }


def layer_ranks(experts: ExpertCounts, found: GroupMeans) -> dict[str, Variable]:
    """Return the experts of each layer ranked by mean frequency, per category and, as `overall_…`, over all."""
    k, about = experts.options.top_experts, {"long_name": "mean expert frequency", "units": "fraction of tokens"}
    tops = {"": most_frequent(found.mean, k), "overall_": most_frequent(found.overall, k)}
    ranks: dict[str, Any] = {"expert": (RANKS, tops[""]), "overall_expert": (RANKS[1:], tops["overall_"])}
    for name, (dims, values, *attrs) in means(found, RANKS[1:], attrs=about).items():
        top = tops["overall_" if name.startswith("overall_") else ""]
        ranks[name] = (dims, np.take_along_axis(np.asarray(values), top, -1), *attrs)
    return ranks


def rank_coords(experts: ExpertCounts) -> dict[str, Any]:
    """Return the coordinates of `counted_ranks` and `layer_ranks`."""
    k, per_layer = experts.options.top_experts, experts.experts
    coords = {"rank": range(1, min(k, per_layer) + 1), "paper_rank": range(1, min(k, experts.counts[0].size) + 1)}
    return {"category": experts.labels, "layer": list(experts.layer_ids), **coords}


def top_experts(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the `top_experts` most used experts per category (SPARCOM, app. F, table 6), and those per layer (ours).

    Args:
        experts: result of `find_ises`. **changes: `top_experts`, `n_resamples`, `confidence_level`, `seed`.

    Returns:
        The paper's ranks: see `counted_ranks`. Ours: `expert`, `value`, `ci_low`, `ci_high` (category, layer, rank):
        mean frequencies; `overall_…` (layer, rank): over all instructions. `fraction`, `fraction_ci_low`, …
        (category, layer): fraction of expert assignments (top_k per token and layer) that go to the category's
        experts; `overall_fraction` (layer): mean over all instructions; `mean_fraction`: mean over layers as well.
        Intervals hold the ranking fixed. `null_mean`, `fraction_null_mean`: values under uniform routing.
    """
    experts = experts.with_options(**changes)
    resamples = resamples_for(experts.categories, experts.options)
    ranks = layer_ranks(experts, group_means(experts.frequencies, experts.categories, resamples))
    chosen = np.asarray(ranks["expert"][1])
    taken = np.take_along_axis(experts.counts, chosen[experts.codes], axis=2).sum(axis=2)
    fraction = taken / (experts.tokens[:, None] * np.float64(experts.top_k))
    by_layer, whole = (group_means(v, experts.categories, resamples) for v in (fraction, fraction.mean(axis=1)))
    about = {"long_name": "fraction of expert assignments", "units": "1"}
    fractions = means(by_layer, ("layer",), "fraction_", about)
    variables = {
        **counted_ranks(experts),
        **ranks,
        "null_mean": ((), experts.top_k / experts.experts),
        **{name.removesuffix("_value"): variable for name, variable in fractions.items()},
        "mean_fraction": ((), whole.overall, about),
        **bounds("mean_fraction_", (), whole.overall_interval),
        "fraction_null_mean": ((), chosen.shape[-1] / experts.experts),
    }
    return dataset(experts, variables, rank_coords(experts), measure=MEASURE.name)


def sentences(ds: xr.Dataset) -> list[str]:
    k, c = ds.sizes["rank"], ds.sizes["category"]
    first = (ds[name].isel(paper_rank=0).values.tolist() for name in ("paper_layer", "paper_expert"))
    leaders = list(zip(*first, strict=True))
    layer, expert = max(leaders, key=leaders.count)
    times = leaders.count((layer, expert))
    first_in = f"expert {expert} of layer {layer} ranks first for {times} of"
    leads = "a different expert ranks first for each of" if times == 1 < c else first_in
    return [
        f"The {k} most used experts per layer and category receive a fraction of {decimal(float(ds['mean_fraction']))}"
        f"{interval(ds, prefix='mean_fraction_')} of expert assignments; under uniform routing it would be "
        f"{decimal(float(ds['fraction_null_mean']))}.",
        f"By activations in the whole model, {leads} the {c} categories (SPARCOM, table 6).",
    ]


def caption(ds: xr.Dataset) -> str:
    return (
        f"Fraction of expert assignments that go to the {ds.sizes['rank']} most used experts per layer and "
        f"category, {ds.attrs['model']} (ours). Dashed: uniform routing, {decimal(float(ds['fraction_null_mean']))}."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw `fraction` over the layers as one curve per category, with uniform routing; see `plotting.curves`."""
    return layer_curves(ds, ax, variable="fraction", prefix="fraction_", **style)


def tables(ds: xr.Dataset) -> dict[str, Any]:
    """Return table 6 of the paper with one row per category, and tidy tables of both rankings."""
    tidy = frames(ds, {"top_experts": "paper_count", "top_experts_by_layer": "value"})
    return {"top_experts_table_6": table_6(ds), **tidy}


def table_6(ds: xr.Dataset, marked: xr.DataArray | None = None) -> Any:
    """Return a DataFrame with cells like "layer 3, expert 12: 5,400 *"; the asterisk shows `marked`."""
    marks = xr.zeros_like(ds["paper_count"], dtype=bool) if marked is None else marked
    held = (ds[name] for name in ("paper_layer", "paper_expert", "paper_count"))

    def cell(layer: int, expert: int, activations: int, marked: bool) -> str:
        return f"layer {layer}, expert {expert}: {count(activations)}{' *' if marked else ''}"

    return xr.apply_ufunc(cell, *held, marks, vectorize=True).to_dataset("paper_rank").to_dataframe()


MEASURE = measure(
    top_experts,
    "Most used experts",
    "SPARCOM, app. F, table 6",
    "experts",
    "The experts of the whole model that the instructions of a category activate most often, by count (SPARCOM, "
    "table 6). Ours: the experts of each layer with the largest mean frequency, and the fraction of expert "
    "assignments (top_k per token and layer) that go to them. Ties go to the lower layer and id.",
)
