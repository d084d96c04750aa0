"""Total variation of mean expert frequencies between base and tuned model (ours).

    value = ½ Σ_e |mean_I (f_tuned(I) − f_base(I))|, by category and layer: net expert assignments per token that move

Noise biases an absolute value upward, so the interval is centered (see `centered_interval`). With few instructions the
value exceeds 0 even without a shift. The null distribution accounts for this: base and tuned model are exchanged at
random within each instruction (one random sign per difference). p-values are corrected with the largest standardized
value over all categories and layers in each exchange (single-step maxT).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis.compare import ExpertComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.drawing import layer_curves
from sparcom_analysis.measures.measure import OURS, dataset, measure
from sparcom_analysis.measures.text import SIGNIFICANT, TIE, decimal, interval, largest, p_value
from sparcom_analysis.resampling.bootstrap import centered_interval, resamples_for, weighted_means
from sparcom_analysis.resampling.means import group_means
from sparcom_analysis.resampling.permutation import pvalue

MAX_EXCHANGES = 999
UNITS = {"long_name": "total variation of expert frequencies", "units": "expert assignments per token"}


def routing_shift(comparison: ExpertComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the total variation between the mean expert frequencies of both models (ours).

    Args:
        comparison: expert counts of both models. **changes: `n_resamples`, `confidence_level`, `n_permutations`,
            `seed`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high`, `null_mean`, `pvalue`, `pvalue_adjusted` (category, layer); `base`, `tuned`,
        `shift` (category, layer, expert): mean frequencies and tuned − base; `overall_…` versions without the category
        axis. The interval of a category of one instruction is NaN.
    """
    comparison = comparison.with_options(**changes)
    options, (base, tuned) = comparison.options, comparison.sides
    codes, kinds = base.codes, len(base.labels)
    sides = [group_means(side.frequencies, base.categories) for side in (base, tuned)]
    before, after = (np.concatenate([side.mean, side.overall[None]]) for side in sides)  # overall last
    difference, shift = tuned.frequencies - base.frequencies, after - before
    found = {"value": np.abs(shift).sum(axis=2) / 2, "base": before, "tuned": after, "shift": shift}
    if (draws := resamples_for(base.categories, options)) is not None:
        by_layer = (weighted_means(one, draws.weights, codes, kinds) for one in np.moveaxis(difference, 1, 0))
        drawn = np.stack([np.abs(one).sum(axis=2) / 2 for one in by_layer], axis=2)
        ends = centered_interval(found["value"], drawn, options.confidence_level)
        found |= {"ci_low": ends.low, "ci_high": ends.high}
    if exchanges := min(options.n_permutations, MAX_EXCHANGES):
        found |= _against_exchanges(found["value"], difference, codes, exchanges, options.seed)
    dims = ["category", "layer", "expert"]
    variables: dict[str, Any] = {name: (dims[: held.ndim], held[:kinds]) for name, held in found.items()}
    variables |= {f"overall_{name}": (dims[1 : held.ndim], held[kinds]) for name, held in found.items()}
    for name in ("value", "overall_value"):
        variables[name] = (*variables[name], UNITS)
    coords = {"category": base.labels, "layer": list(base.layer_ids), "expert": list(range(base.experts))}
    return dataset(comparison, variables, coords, measure=MEASURE.name, n_permutations=exchanges or None)


def _against_exchanges(
    value: NDArray[np.float64], difference: NDArray[np.float64], codes: NDArray[np.intp], exchanges: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return the null mean and p-values of `value` (category + 1, layer); difference: (m, layer, expert)."""
    signs = np.random.Generator(np.random.PCG64(seed)).choice([-1.0, 1.0], size=(exchanges, len(codes)))
    groups = [codes == kind for kind in range(len(value) - 1)] + [np.ones(len(codes), dtype=np.bool_)]
    sums = (np.tensordot(signs[:, members], difference[members], 1) / (2 * members.sum()) for members in groups)
    null = np.stack([np.abs(one).sum(axis=2) for one in sums], axis=1)
    mean, spread = null.mean(axis=0), null.std(axis=0)
    scores = (np.concatenate([value[None], null]) - mean) / np.where(spread > TIE, spread, np.inf)
    largest_scores = scores[1:].max(axis=(1, 2), keepdims=True)
    p, adjusted = (
        pvalue(reached.sum(axis=0), exchanges) for reached in (null >= value - TIE, largest_scores >= scores[0] - TIE)
    )
    return {"null_mean": mean, "pvalue": p, "pvalue_adjusted": adjusted}


def sentences(ds: xr.Dataset) -> list[str]:
    values, models = ds["overall_value"], f"{ds.attrs['model']} and {ds.attrs['tuned_model']}"
    if float(values.max()) <= TIE:
        return [f"Mean expert frequencies are the same in {models}."]
    cell = ds.sel(layer=largest(values)["layer"])
    first = (
        f"Total variation of expert frequencies between {models} is largest in layer {cell['layer'].item()}: "
        f"{decimal(float(cell['overall_value']))} of {ds.attrs['top_k']} expert assignments per token"
        f"{interval(cell, prefix='overall_')}"
    )
    if "pvalue_adjusted" not in ds:
        return [f"{first}."]
    null, p = decimal(float(cell["overall_null_mean"])), p_value(float(cell["overall_pvalue_adjusted"]))
    out, cells = int((ds["pvalue_adjusted"] < SIGNIFICANT).sum()), ds["value"].size
    return [
        f"{first}; with models exchanged at random per instruction, the mean is {null} (corrected {p}).",
        f"It exceeds this null in {out} of {cells} combinations of category and layer (corrected p < 0.05).",
    ]


def caption(ds: xr.Dataset) -> str:
    null = " Dashed: models exchanged at random per instruction." if "null_mean" in ds else ""
    return (
        f"Total variation of mean expert frequencies between {ds.attrs['model']} and {ds.attrs['tuned_model']}, in "
        f"expert assignments per token (of {ds.attrs['top_k']}), by category and layer (ours).{null}"
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one curve per category over the layers, with intervals and the null averaged over categories."""
    null = ds["null_mean"].mean("category").values if "null_mean" in ds else None
    return layer_curves(ds, ax, **({"null": null} | style))


MEASURE = measure(
    routing_shift,
    "Shift of routing after fine-tuning",
    OURS,
    "expert_comparison",
    definition="Half the sum over experts of the absolute change in mean frequency, by category and layer: the net "
    "number of expert assignments per token that move to other experts after fine-tuning.",
)
