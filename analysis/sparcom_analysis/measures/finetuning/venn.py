"""ISNs of single instructions before and after fine-tuning, by layer (SPARCOM, fig. 6).

A category's typical instruction (ours) has the Jaccard similarity nearest the category's median; ties by order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.measures.measure import Measure, dataset
from sparcom_analysis.measures.text import decimal, neurons_of
from sparcom_analysis.resampling.ranks import TIE_DIGITS
from sparcom_data.errors import InvalidInputError

PARTS = ["only_base", "both", "only_tuned"]
MOST_PANELS = 12


def venn(comparison: IsnComparison, instructions: Sequence[str] | None = None) -> xr.Dataset:
    """Return how many ISNs only the base, both and only the tuned model have, by layer (SPARCOM, fig. 6).

    Args:
        comparison: ISN sets of both models. instructions: ids; None: the typical one of each category.

    Returns:
        `value` (instruction, part, layer), ISNs; `jaccard` (instruction), NaN if both sets are empty; the coordinate
        `category` (instruction); the attribute `typical`, whether instructions were chosen as typical.

    Raises:
        InvalidInputError: an id is not complete in both archives; the error names every such id.
    """
    ids, names = comparison.matched.ids, comparison.matched.names
    if missing := [name for name in instructions or () if name not in ids]:
        raise InvalidInputError(
            [
                f"an instruction to show must be complete in both archives; {name!r} is none of the {len(ids):,}. "
                "Give ids of instruction/id"
                for name in missing
            ]
        )
    places = typical_places(comparison) if instructions is None else [ids.index(name) for name in instructions]
    both, base, tuned = comparison.shared, comparison.base_counts, comparison.tuned_counts
    coords = {
        "instruction": [ids[k] for k in places],
        "category": ("instruction", [names[k] for k in places]),
        "part": PARTS,
        "layer": list(comparison.base.layer_ids),
    }
    values = np.stack([base - both, both, tuned - both], axis=1)[places]
    variables: dict[str, Any] = {
        "value": (("instruction", "part", "layer"), values, {"long_name": "ISNs", "units": "neurons"}),
        "jaccard": ("instruction", comparison.jaccard[places]),
    }
    return dataset(comparison, variables, coords, typical=instructions is None)


def typical_places(comparison: IsnComparison) -> list[int]:
    """Return the place of each category's instruction whose similarity is nearest the median of the category."""
    values, names = comparison.jaccard, np.array(comparison.matched.names, dtype=object)
    places = []
    for name in dict.fromkeys(names):
        members = np.flatnonzero((names == name) & ~np.isnan(values))
        if len(members):
            distance = np.abs(values[members] - np.median(values[members])).round(TIE_DIGITS)
            places.append(int(members[distance.argmin()]))
    return places


def sentences(ds: xr.Dataset) -> list[str]:
    """Return what the Dataset says."""
    total = float(ds["value"].sum())
    if not total:
        return ["No instruction has an ISN in either model with these settings."]
    parts = [float(ds["value"].sel(part=part).sum()) / total for part in PARTS]
    which = "one typical instruction per category" if ds.attrs["typical"] else "the instructions shown"
    return [
        f"Of the ISNs of {which} ({neurons_of(ds)}), {parts[1]:.1%} belong to both models, {parts[0]:.1%} to the base "
        f"model only and {parts[2]:.1%} to the tuned model only."
    ]


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    which = "the typical instruction of each category" if ds.attrs["typical"] else "single instructions"
    more = f" The first {MOST_PANELS} are shown." if ds.sizes["instruction"] > MOST_PANELS else ""
    return (
        f"ISNs of {which} by layer, {neurons_of(ds)}: only in {ds.attrs['model']}, in both models, only in "
        f"{ds.attrs['tuned_model']} (SPARCOM, fig. 6). J: Jaccard similarity of the two sets.{more}"
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, *, instruction: str | None = None, **style: Any) -> Axes:
    """Draw the stacked bars of one instruction by id, by default the first."""
    one = ds.isel(instruction=0) if instruction is None else ds.sel(instruction=instruction)
    parts = {part.replace("_", " "): one["value"].sel(part=part).values for part in PARTS}
    title = f"{one['category'].item()}: {one['instruction'].item()}, J = {decimal(float(one['jaccard']), 2)}"
    return plotting.stacked(ds["layer"].values.tolist(), parts, ax=ax, **({"label": "ISNs", "title": title} | style))


def figure(ds: xr.Dataset) -> Figure:
    """Draw the first instructions side by side on the same scale."""
    ids = ds["instruction"].values[:MOST_PANELS].tolist()
    drawn, axes = plotting.panels(max(len(ids), 1), columns=3)
    highest = float(ds["value"].sum("part").max()) if ids else 0.0
    for place, name in enumerate(ids):
        plot(ds, axes[place], instruction=name, legend=not place).set_ylim(0, 1.05 * highest or 1.0)
    return drawn


MEASURE = Measure(
    name="venn",
    title="ISNs of single instructions before and after fine-tuning",
    equation="SPARCOM, fig. 6",
    needs="isn_comparison",
    definition=(
        "Of an instruction, by layer: ISNs of the base model only, of both models, of the tuned model only. The "
        "typical instruction of a category has the Jaccard similarity nearest the category's median (ours)."
    ),
    compute=lambda comparison, _progress: venn(comparison, comparison.options.instructions),
    sentences=sentences,
    caption=caption,
    plot=plot,
    figure=figure,
)
