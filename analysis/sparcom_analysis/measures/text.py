"""Format numbers in sentences: p-values, intervals and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis.plotting.fitting import number

SIGNIFICANT = 0.05
TIE = 1e-12


def p_value(value: float) -> str:
    """Return "p = 0.012", or "p < 0.001"."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with thousands separators and a Unicode minus sign; "n/a" for NaN."""
    return number(value, f",.{digits}f")


def count(value: float) -> str:
    """Return a rounded number with thousands separators; fractions below 10 keep one decimal."""
    return f"{value:,.1f}" if value < 10 and value != round(value) else f"{value:,.0f}"


def interval(ds: xr.Dataset, where: dict[str, Any] | None = None, prefix: str = "", digits: int = 3) -> str:
    """Return " (95 % CI 0.856–0.866)" or " (95 % CI −0.010 to 0.020)" of one cell; empty if it has no interval.

    Args:
        where: labels of the cell. prefix: prefix of the variables, such as "overall_".
    """
    if f"{prefix}ci_low" not in ds:
        return ""
    low, high = (float(ds[f"{prefix}{end}"].sel(where or {})) for end in ("ci_low", "ci_high"))
    level, to = f"{100 * ds.attrs.get('confidence_level', 0.95):g} % CI", " to " if low < 0 else "–"
    return "" if math.isnan(low + high) else f" ({level} {decimal(low, digits)}{to}{decimal(high, digits)})"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return "A, B and C", or the first `most` names "and 3 more"."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def among(ds: xr.Dataset, before: str = " (") -> str:
    """Return " (neurons of routed experts)", or ", neurons of …" for `before` ", "; empty for dense layers."""
    name = neurons_of(ds)
    return "" if name == "neurons" else f"{before}{name}{')' * before.endswith('(')}"


def neurons_of(ds: xr.Dataset) -> str:
    """Return the population's name, e.g. "neurons of routed experts", or "neurons" for dense layers."""
    title = ds.attrs.get("population_title", "")
    return "neurons" if title in ("", "dense layers") else f"neurons of {title}"


def largest(values: xr.DataArray) -> dict[str, Any]:
    """Return the labels of the largest value, ignoring NaN."""
    place = np.unravel_index(int(np.nanargmax(values.values)), values.shape)
    return {str(dim): values[dim].values[at].item() for dim, at in zip(values.dims, place, strict=True)}


def extremes(values: xr.DataArray, digits: int = 3) -> str:
    """Return "lowest for A (0.120) and highest for B and C (0.310)", with all ties; empty for fewer than two values.

    Args:
        values: one-dimensional; along `layer` the text reads "in layer 3". NaN is ignored.
    """
    known = values[np.isfinite(values.values)]
    low, high = (float(known.min()), float(known.max())) if known.size > 1 else (math.nan, math.nan)
    if known.size < 2 or high - low <= TIE * max(1.0, abs(high)):
        return "" if known.size < 2 else f"the same {_where(known)} ({decimal(low, digits)})"
    ends = [known[np.abs(known.values - end) <= TIE * max(1.0, abs(end))] for end in (low, high)]
    return f"lowest {_where(ends[0])} ({decimal(low, digits)}) and highest {_where(ends[1])} ({decimal(high, digits)})"


def _where(values: xr.DataArray) -> str:
    names = [str(name) for name in values[values.dims[0]].values]
    layers = "in layers" if len(names) > 1 else "in layer"
    return f"{layers if values.dims[0] == 'layer' else 'for'} {listed(names)}"
