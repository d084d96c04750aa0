"""What the measures of general and unique neurons and experts share: the Dataset, its sentences, figures and tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.general_unique.draws import count_members
from sparcom_analysis.measures.general_unique.members import KINDS, Membership, find_members
from sparcom_analysis.measures.measure import OURS, Measure, dataset
from sparcom_analysis.measures.text import SIGNIFICANT, count, listed

MAX_RESAMPLES = 200  # a draw costs more here than weights of means do
MAX_PERMUTATIONS = 500  # the least p of twelve categories is then 12 / 501 = 0.024
ONE_CATEGORY = "There is only one category, so no member is general or unique."
TITLES = {
    "general": "general (all categories)",
    "common": "common (several categories)",
    "unique": "unique (one category)",
}


def member_dataset(
    subject: IsnSets | ExpertCounts,
    membership: Membership,
    progress: Progress | None,
    rule: str,
    title: str,
    **attributes: Any,
) -> xr.Dataset:
    """Return how many members each category has, how many are general, common and unique, and which they are.

    `value`, `ci_low`, `ci_high` and `null_mean`, over permuted labels, are numbers of members:
        value (kind, category): all members of a category, and those unique to it; layer_value with a layer axis more.
        overall_value (overall_kind): general members, and those common to several categories; overall_layer_value.
    Also:
        pvalue, pvalue_adjusted (category): that as many are unique under permuted labels; Holm's correction.
        fraction_value (fraction_kind, category): general and unique members over the category's members, 0 to 1.
        instructions, needed (category): instructions, and in how many of them a member must be.
        member_category, member_layer, member_expert, member_neuron, member_kind (member): one entry per category and
        member. A neuron of a routed expert has both ids, `member_neuron` is then within the expert.

    With one category there are members alone, and the attribute `reason`.

    Args:
        rule: which ids are an instruction's, as in "ISNs of". title: of the ids, in the plural.
    """
    options, labels, c = subject.options, subject.labels, len(subject.labels)
    options = replace(
        options,
        n_resamples=min(options.n_resamples, MAX_RESAMPLES),
        n_permutations=min(options.n_permutations, MAX_PERMUTATIONS) if c > 1 else 0,
    )
    members = find_members(membership, options.min_share)
    unit = {"long_name": "members", "units": "experts" if isinstance(subject, ExpertCounts) else "neurons"}
    variables: dict[str, Any] = {
        "instructions": ("category", np.bincount(subject.codes)),
        "needed": ("category", members.needed),
        "member_category": ("member", np.array(labels)[members.category]),
        "member_layer": ("member", np.array(subject.layer_ids)[members.layer]),
        "member_kind": ("member", np.array([*KINDS, "member"])[members.kind]),
        f"member_{unit['units'][:-1]}": ("member", members.neuron),
    }
    if routed := unit["units"] == "neurons" and membership.experts > 1:
        variables["member_expert"] = ("member", members.expert)
    for name, numbers in count_members(membership, members, options, progress).items():
        if name.startswith("fraction"):
            variables[name] = (("fraction_kind", "category"), numbers, {"long_name": "fraction of members"})
        elif name.startswith("pvalue"):
            variables[name] = ("category", numbers)
        else:
            each, rest = numbers[: 2 * c].reshape(2, c, -1), numbers[2 * c :]
            variables[name] = (("kind", "category"), each[..., -1], unit)
            variables[f"layer_{name}"] = (("kind", "category", "layer"), each[..., :-1], unit)
            variables[f"overall_{name}"] = ("overall_kind", rest[:, -1], unit)
            variables[f"overall_layer_{name}"] = (("overall_kind", "layer"), rest[:, :-1], unit)
    return dataset(
        subject,
        variables,
        {
            "kind": ["members", "unique"],
            "overall_kind": ["general", "common"],
            "fraction_kind": ["general", "unique"],
            "category": labels,
            "layer": list(subject.layer_ids),
        },
        member_title=title,
        member_rule=f"{rule} at least {100 * options.min_share:.4g} % of its instructions",
        min_share=options.min_share,
        per_layer=membership.experts * membership.width,
        neurons_per_expert=membership.width if routed else None,
        model_layers=subject.archive.attributes.model.layers,
        reason=None if c > 1 else ONE_CATEGORY,
        n_permutations=options.n_permutations or None,
        **attributes,
    )


def sentences(ds: xr.Dataset) -> list[str]:
    """Return how many members are general and unique, which category has most, and which have more than the null."""
    title, units = ds.attrs["member_title"], ds["value"].attrs["units"]
    of, c = f"{title} that are members of a category ({ds.attrs['member_rule']})", ds.sizes["category"]
    if "reason" in ds.attrs:
        label = str(ds["category"].values[0])
        number = _counted(ds, kind="members", category=label)
        return [f"Members of {label} among {title}: {number}. {ds.attrs['reason']}"]
    unique = ds["value"].sel(kind="unique")
    general, alone = float(ds["overall_value"].sel(overall_kind="general")), float(unique.sum())
    if not (total := alone + float(ds["overall_value"].sum())):
        return [f"There are no {of}."]
    text = (
        f"Of {count(total)} {of}, {_counted(ds, 'overall_', overall_kind='general')} {'is' if general == 1 else 'are'} "
        f"general (members of all {c} categories) and {count(alone)} {'is' if alone == 1 else 'are'} unique to one"
    )
    if "null_mean" in ds:
        null = float(ds["overall_null_mean"].sel(overall_kind="general"))
        null_alone = float(ds["null_mean"].sel(kind="unique").sum())
        text += f"; permuted labels give {count(null)} and {count(null_alone)} on average"
    found = [f"{text}."]
    if alone:
        most = [str(name) for name in ds["category"].values[unique.values == unique.values.max()]]
        has, each = ("has", "") if len(most) == 1 else ("have", " each")
        number = _counted(ds, kind="unique", category=most[0]) if len(most) == 1 else count(float(unique.max()))
        found.append(f"{listed(most)} {has} the most unique {units}: {number}{each}.")
    if "pvalue_adjusted" in ds:
        out = [str(name) for name in ds["category"].values[ds["pvalue_adjusted"].values < SIGNIFICANT]]
        more = f"{'has' if len(out) == 1 else 'have'} more unique {units} than under permuted labels after correction"
        found.append(f"{len(out)} of {c} categories {more}" + (f": {listed(out)}." if out else "."))
    return found


def _counted(ds: xr.Dataset, prefix: str = "", **where: str) -> str:
    """Return "120 (95 % CI 100–140)" of one cell."""
    cell = ds.sel(where)
    text, low, high = (count(float(cell.get(f"{prefix}{name}", np.nan))) for name in ("value", "ci_low", "ci_high"))
    return text if low == "nan" else f"{text} ({100 * ds.attrs['confidence_level']:g} % CI {low}–{high})"


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    text = f"General and unique {ds.attrs['member_title']}, {ds.attrs['model']} (ours). "
    if "reason" in ds.attrs:
        return f"{text}Members of a category: {ds.attrs['member_rule']}. {ds.attrs['reason']}"
    null = "Dashed lines and ticks: mean over permuted labels. Bold: more after correction (p < 0.05)."
    return (
        f"{text}Members unique to each category, and members per layer. Members of a category: "
        f"{ds.attrs['member_rule']}. {null if 'null_mean' in ds else ''}".rstrip()
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the unique members of each category as bars, with intervals, null and significance, into `ax`.

    Args:
        style: `label`, `title`; see `plotting.bars`. With one category the bar is of its members.
    """
    kind, unit = "members" if "reason" in ds.attrs else "unique", ds["value"].attrs["units"]
    marks = ds["pvalue_adjusted"].values < SIGNIFICANT if "pvalue_adjusted" in ds else None
    style = {"label": f"unique {unit}" if kind == "unique" else unit, "title": ds.attrs["model"]} | style
    return plotting.bars(_labels(ds), ax=ax, marks=marks, **_drawn(ds, "", kind=kind), **style)


def figure(ds: xr.Dataset) -> Figure:
    """Draw unique members per category, and general, common and unique members per layer: four panels."""
    made, axes = plotting.panels(1 if "reason" in ds.attrs else 4, columns=2)
    plot(ds, axes[0])
    layers, style = ds["layer"].values.tolist(), {"label": ds["value"].attrs["units"]}
    for ax, kind in zip(axes[1:3], ("general", "common"), strict=False):
        drawn = _drawn(ds, "overall_layer_", overall_kind=[kind])
        plotting.curves(layers, names=[kind], ax=ax, title=TITLES[kind], legend=False, **drawn, **style)
    for ax in axes[3:]:
        drawn = _drawn(ds, "layer_", kind="unique")
        plotting.curves(layers, names=_labels(ds), ax=ax, title=TITLES["unique"], **drawn, **style)
    return made


def _labels(ds: xr.Dataset) -> list[str]:
    return [str(name) for name in ds["category"].values]


def _drawn(ds: xr.Dataset, prefix: str, **where: Any) -> dict[str, Any]:
    """Return what `plotting` draws: values, their intervals, and the null; of curves the mean null of all."""
    names = {"value": "values", "ci_low": "low", "ci_high": "high", "null_mean": "null"}
    drawn = {key: ds[f"{prefix}{name}"].sel(where).values for name, key in names.items() if name in ds}
    if prefix and "null" in drawn:
        drawn["null"] = drawn["null"].mean(axis=0)
    return drawn


def tables(ds: xr.Dataset) -> dict[str, Any]:
    """Return one tidy DataFrame per set of dimensions, named after them, such as "kind_category"."""
    shapes = dict.fromkeys(held.dims for held in ds.data_vars.values() if held.dims and held.dims != ("member",))
    same = {dims: [name for name, held in ds.data_vars.items() if held.dims == dims] for dims in shapes}
    return {"_".join(map(str, dims)): ds[names].to_dataframe() for dims, names in same.items()}


def member_measure(**fields: Any) -> Measure:
    """Return the `Measure` of these fields, with what this file defines."""
    return Measure(
        equation=OURS, sentences=sentences, caption=caption, plot=plot, figure=figure, tables=tables, **fields
    )
