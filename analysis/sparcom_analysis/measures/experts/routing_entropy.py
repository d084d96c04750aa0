"""Routing entropy per layer and category (ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.drawing import layer_curves
from sparcom_analysis.measures.measure import OURS, dataset, means, measure
from sparcom_analysis.measures.text import decimal, interval
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means


def routing_entropy(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return H = −Σ_e q_e log2 q_e in bits, with q_e the fraction of a layer's expert assignments that go to expert e.

    Args:
        **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (category, layer): means over instructions; `overall_value`, … (layer);
        `instruction_value` (instruction, layer); `null_mean`: log2 of the number of experts (uniform routing).
    """
    experts = experts.with_options(**changes)
    values = entropy(experts.counts)
    found = group_means(values, experts.categories, resamples_for(experts.categories, experts.options))
    return dataset(
        experts,
        {
            **means(found, ["layer"], attrs={"long_name": "routing entropy", "units": "bits"}),
            "instruction_value": (("instruction", "layer"), values),
            "null_mean": ((), float(np.log2(experts.experts))),
        },
        {"category": found.labels, "layer": list(experts.layer_ids), "instruction": list(experts.ids)},
        measure="routing_entropy",
    )


def entropy(counts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the entropy in bits over the last axis of counts; 0 log 0 is 0."""
    q = counts / counts.sum(axis=-1, keepdims=True)
    bits: NDArray[np.float64] = -(q * np.log2(q, out=np.zeros_like(q), where=q > 0)).sum(axis=-1)
    return bits + 0.0  # turns −0 into 0


def sentences(ds: xr.Dataset) -> list[str]:
    mean = ds["overall_value"].values
    low, high = (_in_layer(ds.isel(layer=int(at))) for at in (np.argmin(mean), np.argmax(mean)))
    uniform = decimal(float(ds["null_mean"]), 2)
    return [f"Mean routing entropy is lowest in {low}, and highest in {high}. Uniform routing gives {uniform} bits."]


def _in_layer(one: xr.Dataset) -> str:
    bits = decimal(float(one["overall_value"]), 2)
    return f"layer {int(one['layer'])}, {bits} bits{interval(one, prefix='overall_', digits=2)}"


def caption(ds: xr.Dataset) -> str:
    return (
        f"Mean entropy of an instruction's expert assignments per layer and category, {ds.attrs['model']} (ours). "
        "Dashed: uniform routing."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one curve per category over the layers, and uniform routing; style: see `plotting.curves`."""
    return layer_curves(ds, ax, **({"null": float(ds["null_mean"])} | style))


MEASURE = measure(
    routing_entropy,
    "Entropy of routing by layer",
    OURS,
    "experts",
    "The entropy, in bits, of the distribution of an instruction's expert assignments over the experts of a layer. It "
    "is 0 if one expert receives all, and log2 of the number of experts if all receive equally many.",
    also_tuned=True,
)
