"""Plots that most measures use: curves over layers and bars per category."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from sparcom_analysis import plotting


def layer_curves(
    ds: xr.Dataset, ax: Axes | None = None, *, variable: str = "value", prefix: str = "", **style: Any
) -> Axes:
    """Draw a variable (category, layer) as one curve per category, with its intervals and its null (layer).

    Args:
        variable: its name. prefix: prefix of its intervals and null, such as "layer_". style: see `plotting.curves`.
    """
    held = _style(ds, variable, prefix, "layer") | style
    return plotting.curves(ds["layer"].values.tolist(), ds[variable].values, names(ds), ax=ax, **held)


def category_bars(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw `value` (category) as one bar per category, with its intervals and null; style: see `plotting.bars`."""
    return plotting.bars(names(ds), ds["value"].values, ax=ax, **(_style(ds, "value", "", "category") | style))


def names(ds: xr.Dataset, coordinate: str = "category") -> list[str]:
    """Return the labels of a coordinate as text."""
    return [str(name) for name in ds[coordinate].values]


def _style(ds: xr.Dataset, variable: str, prefix: str, axis: str) -> dict[str, Any]:
    """Return label "name (unit)", title "model" or "base → tuned", interval ends, and the null along `axis`."""
    name, unit = (str(ds[variable].attrs.get(key, default)) for key, default in (("long_name", ""), ("units", "1")))
    models = [ds.attrs["model"], ds.attrs.get("tuned_model")]
    held = {"label": name if unit == "1" else f"{name} ({unit})", "title": " → ".join(filter(None, models))}
    shown = {"low": "ci_low", "high": "ci_high", "null": "null_mean"}
    drawn = {key: ds[f"{prefix}{end}"] for key, end in shown.items() if f"{prefix}{end}" in ds}
    return held | {key: one.values for key, one in drawn.items() if key != "null" or set(one.dims) <= {axis}}
