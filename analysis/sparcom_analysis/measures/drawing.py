"""The two drawings that most measures share: curves over layers and bars per category."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from sparcom_analysis import plotting


def layer_curves(
    ds: xr.Dataset, ax: Axes | None = None, *, variable: str = "value", prefix: str = "", **style: Any
) -> Axes:
    """Draw a variable (category, layer) as one curve per category, with its intervals.

    Args:
        variable: its name. prefix: of its intervals, such as "layer_". style: see `plotting.curves`.
    """
    held = _ends(ds, prefix) | {"label": _label(ds[variable]), "title": ds.attrs["model"]}
    return plotting.curves(ds["layer"].values.tolist(), ds[variable].values, names(ds), ax=ax, **(held | style))


def category_bars(
    ds: xr.Dataset, ax: Axes | None = None, *, variable: str = "value", prefix: str = "", **style: Any
) -> Axes:
    """Draw a variable (category) as one bar per category, with its intervals; arguments as for `layer_curves`."""
    held = _ends(ds, prefix) | {"label": _label(ds[variable]), "title": ds.attrs["model"]}
    return plotting.bars(names(ds), ds[variable].values, ax=ax, **(held | style))


def names(ds: xr.Dataset, coordinate: str = "category") -> list[str]:
    """Return the labels of a coordinate as text."""
    return [str(name) for name in ds[coordinate].values]


def _ends(ds: xr.Dataset, prefix: str) -> dict[str, Any]:
    return {end: ds[f"{prefix}ci_{end}"].values for end in ("low", "high") if f"{prefix}ci_{end}" in ds}


def _label(values: xr.DataArray) -> str:
    """Return "name (unit)"; without a unit, or with "1", the name."""
    name, unit = str(values.attrs.get("long_name", "")), str(values.attrs.get("units", "1"))
    return name if unit == "1" else f"{name} ({unit})"
