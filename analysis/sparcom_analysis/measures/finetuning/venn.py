"""ISNs of single instructions before and after fine-tuning, by layer (SPARCOM, fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.measures.measure import Variable, dataset, measure
from sparcom_analysis.measures.text import among, decimal
from sparcom_analysis.plotting.sharing import label_outer
from sparcom_analysis.resampling.ranks import TIE_DIGITS
from sparcom_data.errors import InvalidInputError

PARTS = ["only_base", "both", "only_tuned"]
MAX_PANELS = 12


def venn(comparison: IsnComparison, instructions: Sequence[str] | None = None) -> xr.Dataset:
    """Count the ISNs of only the base model, both models, and only the tuned model, by layer (SPARCOM, fig. 6).

    Args:
        comparison: ISN sets of both models.
        instructions: ids (default: one typical instruction per category, with the Jaccard similarity nearest the
            category's median; ties go to the first; ours).

    Returns:
        `value` (instruction, part, layer): ISNs; `jaccard` (instruction): NaN if both sets are empty; the coordinate
        `category` (instruction); the attribute `typical`: True for the default choice of instructions.

    Raises:
        InvalidInputError: an id is not complete in both archives; the error names every such id.
    """
    ids, names = comparison.matched.ids, comparison.matched.names
    if missing := [name for name in instructions or () if name not in ids]:
        rule, count = "an instruction to show must be complete in both archives", f"{len(ids):,}"
        raise InvalidInputError([f"{rule}; {n!r} is none of the {count}. Use ids from instruction/id" for n in missing])
    places = _typical(comparison) if instructions is None else [ids.index(name) for name in instructions]
    both = comparison.shared
    parts = np.stack([comparison.base_counts - both, both, comparison.tuned_counts - both], axis=1)
    variables: dict[str, Variable] = {
        "value": (("instruction", "part", "layer"), parts[places], {"long_name": "ISNs", "units": "neurons"}),
        "jaccard": ("instruction", comparison.jaccard[places]),
    }
    coords = {
        "instruction": [ids[k] for k in places],
        "category": ("instruction", [names[k] for k in places]),
        "part": PARTS,
        "layer": list(comparison.base.layer_ids),
    }
    return dataset(comparison, variables, coords, measure=MEASURE.name, typical=instructions is None)


def _typical(comparison: IsnComparison) -> list[int]:
    """Return, per category, the index of the instruction with the similarity nearest the category's median."""
    values, names = comparison.jaccard, np.array(comparison.matched.names, dtype=object)
    groups = (np.flatnonzero((names == name) & ~np.isnan(values)) for name in dict.fromkeys(names))
    known = [(members, values[members]) for members in groups if len(members)]
    return [int(members[np.abs(one - np.median(one)).round(TIE_DIGITS).argmin()]) for members, one in known]


def sentences(ds: xr.Dataset) -> list[str]:
    counts = ds["value"].sum(["instruction", "layer"]).sel(part=PARTS).values
    if not counts.sum():
        return ["No instruction has an ISN in either model with these settings."]
    base, both, tuned = (f"{100 * part:.1f} %" for part in counts / counts.sum())
    which = "one typical instruction per category" if ds.attrs["typical"] else "the instructions shown"
    return [
        f"Of the ISNs of {which}{among(ds)}, {both} belong to both models, {base} to the base model only and "
        f"{tuned} to the tuned model only."
    ]


def caption(ds: xr.Dataset) -> str:
    which = "the typical instruction of each category" if ds.attrs["typical"] else "single instructions"
    more = f" The first {MAX_PANELS} are shown." if ds.sizes["instruction"] > MAX_PANELS else ""
    return (
        f"ISNs of {which} by layer{among(ds, ', ')}: only in {ds.attrs['model']}, in both models, only in "
        f"{ds.attrs['tuned_model']} (SPARCOM, fig. 6). J: Jaccard similarity of the two sets.{more}"
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, *, instruction: str | None = None, **style: Any) -> Axes:
    """Draw stacked bars of one instruction, by id (default: the first); style: see `plotting.stacked`."""
    one = ds.isel(instruction=0) if instruction is None else ds.sel(instruction=instruction)
    parts = {part.replace("_", " "): one["value"].sel(part=part).values for part in PARTS}
    title = f"{one['category'].item()}: {one['instruction'].item()}, J = {decimal(float(one['jaccard']), 2)}"
    return plotting.stacked(ds["layer"].values.tolist(), parts, ax=ax, **({"label": "ISNs", "title": title} | style))


def figure(ds: xr.Dataset) -> Figure:
    """Draw the first 12 instructions side by side on one scale."""
    ids = ds["instruction"].values[:MAX_PANELS].tolist()
    drawn, axes = plotting.panels(max(len(ids), 1), columns=3)
    for ax, name in zip(axes, ids, strict=False):
        plot(ds, ax, instruction=name)
    rows = [axes[first : first + 3] for first in range(0, len(axes), 3)]
    plotting.share(rows)
    label_outer(rows)
    return drawn


MEASURE = measure(
    lambda comparison, _progress: venn(comparison, comparison.options.instructions),
    "ISNs of single instructions before and after fine-tuning",
    "SPARCOM, fig. 6",
    "isn_comparison",
    definition="The number of an instruction's ISNs per layer: in the base model only, in both models, and in the "
    "tuned model only. The typical instruction of a category has the Jaccard similarity nearest the category's median "
    "(ours).",
    name="venn",
)
