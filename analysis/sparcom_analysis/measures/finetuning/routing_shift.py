"""How fine-tuning shifts the use of experts: total variation of mean frequencies (ours).

    value = ½ Σ_e |mean_I (f_tuned(I) − f_base(I))|, by category and layer: top-k choices per token that go elsewhere

The interval is centered: draw matched instructions with replacement within their categories, compute the value of each
draw, and add the percentiles of the draws' deviations from their own mean to the value; the low end is at least 0. The
draws' own percentiles would lie too high, since an absolute value only rises with noise. Noise is in the value itself
too: with few instructions it is above 0 even if nothing shifts. The null shows how far above: base and tuned are
exchanged at random per instruction (a sign per difference), and the value is computed again. p-values are corrected by
the largest standardized value of all categories and layers in each exchange (single-step maximum).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis.compare import ExpertComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.measure import OURS, Measure, dataset
from sparcom_analysis.measures.neurons.layers import plot_layers
from sparcom_analysis.measures.text import SIGNIFICANT, TIE, decimal, interval, largest, p_value
from sparcom_analysis.resampling.bootstrap import Interval, percentiles, resamples_for, weighted_means
from sparcom_analysis.resampling.means import group_means

MOST_EXCHANGES = 999
UNITS = {"long_name": "total variation of expert frequencies", "units": "top-k choices per token"}


def routing_shift(comparison: ExpertComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the total variation between the mean expert frequencies of both models (ours).

    Args:
        comparison: expert counts of both models. **changes: `n_resamples`, `confidence_level`, `n_permutations`,
            `seed`: see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high`, `null_mean`, `pvalue`, `pvalue_adjusted` (category, layer); `base`, `tuned`,
        `shift` (category, layer, expert), mean frequencies and tuned − base; the same with `overall_` without the
        category axis. No interval (NaN) for a category of one instruction.
    """
    comparison = comparison.with_options(**changes)
    options, (base, tuned) = comparison.options, comparison.sides
    codes, kinds = base.codes, len(base.labels)
    sides = [group_means(side.frequencies, base.categories) for side in (base, tuned)]
    frequencies = [np.concatenate([side.mean, side.overall[None]]) for side in sides]  # overall last
    shift, difference = frequencies[1] - frequencies[0], tuned.frequencies - base.frequencies
    found = {"value": np.abs(shift).sum(axis=2) / 2}
    if (draws := resamples_for(base.categories, options)) is not None:
        columns = [weighted_means(one, draws.weights, codes, kinds) for one in np.moveaxis(difference, 1, 0)]
        drawn = np.stack([np.abs(one).sum(axis=2) / 2 for one in columns], axis=2)
        ends = _centered(found["value"], drawn, options.confidence_level)
        found |= {"ci_low": ends.low, "ci_high": ends.high}
    if exchanges := min(options.n_permutations, MOST_EXCHANGES):
        found |= _against_exchanges(found["value"], difference, codes, exchanges, options.seed)
    variables: dict[str, Any] = {}
    for prefix, kind, rows in (("", ["category"], slice(kinds)), ("overall_", [], kinds)):
        variables |= {f"{prefix}{name}": ([*kind, "layer"], part[rows]) for name, part in found.items()}
        for name, part in (("base", frequencies[0]), ("tuned", frequencies[1]), ("shift", shift)):
            variables[f"{prefix}{name}"] = ([*kind, "layer", "expert"], part[rows])
        variables[f"{prefix}value"] = (*variables[f"{prefix}value"], UNITS)
    coords = {"category": base.labels, "layer": list(base.layer_ids), "expert": list(range(base.experts))}
    return dataset(comparison, variables, coords, n_permutations=exchanges or None)


def _centered(value: NDArray[np.float64], drawn: NDArray[np.float64], confidence_level: float) -> Interval:
    """Return value + percentiles of the draws' deviations from their mean over draws (axis 0), at least 0."""
    low, high = percentiles(drawn - drawn.mean(axis=0), confidence_level)
    return Interval(np.maximum(value + np.minimum(low, 0), 0), value + np.maximum(high, 0))


def _against_exchanges(
    value: NDArray[np.float64], difference: NDArray[np.float64], codes: NDArray[np.intp], exchanges: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return the mean of the null and the p-values of values (category + 1, layer).

    Args:
        difference: float64 (m, layer, expert), tuned − base. codes: intp (m,), groups. exchanges: draws of signs.
    """
    signs = np.random.Generator(np.random.PCG64(seed)).choice([-1.0, 1.0], size=(exchanges, len(codes)))
    null = np.empty((exchanges, *value.shape))
    for row in range(len(value)):
        members = codes == row if row < len(value) - 1 else np.ones(len(codes), dtype=np.bool_)
        for layer in range(value.shape[1]):
            null[:, row, layer] = np.abs(signs[:, members] @ difference[members, layer]).sum(axis=1)
        null[:, row] /= 2 * members.sum()
    mean, spread = null.mean(axis=0), null.std(axis=0)
    scores = (np.concatenate([value[None], null]) - mean) / np.where(spread > TIE, spread, np.inf)
    reached = [null >= value - TIE, np.max(scores[1:], axis=(1, 2), keepdims=True) >= scores[0] - TIE]
    pvalue, adjusted = ((1 + part.sum(axis=0)) / (1 + exchanges) for part in reached)
    return {"null_mean": mean, "pvalue": pvalue, "pvalue_adjusted": adjusted}


def sentences(ds: xr.Dataset) -> list[str]:
    """Return what the Dataset says."""
    values, models = ds["overall_value"], f"{ds.attrs['model']} and {ds.attrs['tuned_model']}"
    if float(values.max()) <= TIE:
        return [f"Mean expert frequencies are the same in {models}."]
    cell = ds.sel(layer=largest(values)["layer"])
    found = [
        f"Total variation of expert frequencies between {models} is largest in layer {cell['layer'].item()}: "
        f"{decimal(float(cell['overall_value']))} of {ds.attrs['top_k']} top-k choices per token"
        f"{interval(cell, prefix='overall_')}."
    ]
    if "pvalue_adjusted" in ds:
        null, p = float(cell["overall_null_mean"]), float(cell["overall_pvalue_adjusted"])
        found.append(
            f"With the models exchanged at random per instruction it is {decimal(null)} there (corrected {p_value(p)})."
        )
        out = int((ds["pvalue_adjusted"] < SIGNIFICANT).sum())
        found.append(
            f"It exceeds this null in {out} of {ds['value'].size} combinations of category and layer (p < 0.05)."
        )
    place = largest(ds["value"])
    found.append(
        f"Of the categories, {place['category']} shifts most, in layer {place['layer']}: "
        f"{decimal(float(ds['value'].sel(place)))}{interval(ds, place)}."
    )
    return found


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    null = " Dashed: the models exchanged at random per instruction." if "null_mean" in ds else ""
    return (
        f"Total variation of mean expert frequencies between {ds.attrs['model']} and {ds.attrs['tuned_model']}, in "
        f"top-k choices per token (of {ds.attrs['top_k']}), by category and layer (ours).{null}"
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one curve per category over the layers, with bands and the mean null of the categories."""
    null = ds["null_mean"].mean("category").values if "null_mean" in ds else None
    title = f"{ds.attrs['model']} → {ds.attrs['tuned_model']}"
    return plot_layers(ds, ax, **({"null": null, "title": title} | style))


MEASURE = Measure(
    name="routing_shift",
    title="Shift of routing after fine-tuning",
    equation=OURS,
    needs="expert_comparison",
    definition=(
        "Half the sum over experts of the absolute change in mean frequency: how many of a token's top-k choices go to "
        "other experts after fine-tuning, by category and layer."
    ),
    compute=routing_shift,
    sentences=sentences,
    caption=caption,
    plot=plot,
)
