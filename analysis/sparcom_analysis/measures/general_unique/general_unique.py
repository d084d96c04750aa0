"""General, common and unique neurons and experts: members of all categories, of several, or of one (see `members`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.drawing import category_bars, layer_curves, names
from sparcom_analysis.measures.general_unique.draws import count_members
from sparcom_analysis.measures.general_unique.members import KINDS, find_members, membership_of
from sparcom_analysis.measures.measure import OURS, dataset, frames, measure
from sparcom_analysis.measures.text import SIGNIFICANT, count, listed, neurons_of
from sparcom_data.errors import InvalidInputError

MAX_DRAWS = {"n_resamples": 200, "n_permutations": 500}  # each draw recounts members, which is slower than means
ONE_CATEGORY = "There is only one category, so no member is general or unique."


def general_unique(
    subject: IsnSets | ExpertCounts, progress: Progress | None = None, *, most_used: bool = False, **changes: Any
) -> xr.Dataset:
    """Find the neurons or experts that are members of all categories, of several, or of one (ours).

    A neuron is a member of a category if it is an ISN of at least `min_share` of its instructions. An expert is a
    member if at least `min_share` of the instructions activate it (the paper's ISEs).

    Args:
        subject: ISN sets from `find_isns` for neurons, or expert counts from `find_ises` for experts.
        most_used: count only the `top_experts` most used experts per layer, with ties (default: all activated ones).
        **changes: `min_share`, `top_experts`, `n_resamples` (capped at 200), `confidence_level`, `n_permutations`
            (capped at 500), `seed`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high`, and `null_mean` over permuted labels, are numbers of members.
        value (kind, category): members of a category, and members unique to it; layer_value adds a layer axis.
        overall_value (overall_kind): general members, and members common to several categories; overall_layer_value.
        pvalue, pvalue_adjusted (category): permutation test of the number of unique members; Holm's correction.
        fraction_value (fraction_kind, category): general and unique members divided by the category's members.
        instructions, needed (category): instructions, and the number of them required for membership.
        member_category, member_layer, member_expert, member_neuron, member_kind (member): one entry per category and
        member. For neurons of routed experts, `member_neuron` is an index within the expert.
        With one category there are only members, and the attribute `reason`.
    """
    subject = subject.with_options(**changes)
    reduced = {name: min(most, getattr(subject.options, name)) for name, most in MAX_DRAWS.items()}
    subject, rule = subject.with_options(**reduced), _rule(subject, most_used)
    options, labels, c = subject.options, subject.labels, len(subject.labels)
    membership = membership_of(subject, most_used)
    members = find_members(membership, options.min_share)
    unit = {"long_name": "members", "units": "neurons" if isinstance(subject, IsnSets) else "experts"}
    variables: dict[str, Any] = {
        "instructions": ("category", np.bincount(subject.codes)),
        "needed": ("category", members.needed),
        "member_category": ("member", np.array(labels)[members.category]),
        "member_layer": ("member", np.array(subject.layer_ids)[members.layer]),
        "member_kind": ("member", np.array([*KINDS, "member"])[members.kind]),
        f"member_{unit['units'][:-1]}": ("member", members.neuron),
    }
    if routed := isinstance(subject, IsnSets) and membership.experts > 1:
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
    coords: dict[str, Any] = {"kind": ["members", "unique"], "overall_kind": ["general", "common"]}
    coords |= {"fraction_kind": ["general", "unique"], "category": labels, "layer": list(subject.layer_ids)}
    found = {
        "min_share": options.min_share,
        "per_layer": membership.experts * membership.width,
        "neurons_per_expert": membership.width if routed else None,
        "model_layers": subject.archive.attributes.model.layers,
        "reason": None if c > 1 else ONE_CATEGORY,
        "n_permutations": options.n_permutations if "null_mean" in variables else None,
    }
    return dataset(subject, variables, coords, **(found | rule))


def _rule(subject: IsnSets | ExpertCounts, most_used: bool) -> dict[str, Any]:
    """Return the attributes that name the measure, its members, and the rule of membership."""
    options, share = subject.options, f"at least {100 * subject.options.min_share:.4g} % of its instructions"
    if isinstance(subject, IsnSets):
        if most_used:
            raise InvalidInputError("most_used applies to experts only; got ISN sets. Pass expert counts, or omit it")
        title = neurons_of(xr.Dataset(attrs={"population_title": subject.population.title}))
        held = {"measure": MEASURE.name, "member_title": title, "member_rule": f"ISNs of {share}"}
        return {**held, "top": options.top, "min_frequency": options.min_frequency}
    if not most_used:
        return {"measure": EXPERTS.name, "member_title": "experts", "member_rule": f"activated by {share}"}
    k, title = options.top_experts, "most used experts"
    held = {"measure": MOST_USED.name, "member_title": title, "population": "most_used_expert"}
    member_rule = f"among the {k} most used of their layer in {share}"
    return {**held, "population_title": title, "top_experts": k, "member_rule": member_rule}


def sentences(ds: xr.Dataset) -> list[str]:
    title = ds.attrs["member_title"]
    of, c = f"{title} that are members of a category ({ds.attrs['member_rule']})", ds.sizes["category"]
    if "reason" in ds.attrs:
        number = _counted(ds, kind="members", category=names(ds)[0])
        return [f"Members of {names(ds)[0]} among {title}: {number}. {ds.attrs['reason']}"]
    general = float(ds["overall_value"].sel(overall_kind="general"))
    unique = float(ds["value"].sel(kind="unique").sum())
    if not (total := unique + float(ds["overall_value"].sum())):
        return [f"There are no {of}."]
    text = (
        f"Of {count(total)} {of}, {_counted(ds, 'overall_', overall_kind='general')} {'is' if general == 1 else 'are'} "
        f"general (members of all {c} categories) and {count(unique)} {'is' if unique == 1 else 'are'} unique to one"
    )
    if "null_mean" not in ds:
        return [f"{text}."]
    null = float(ds["overall_null_mean"].sel(overall_kind="general"))
    null_unique = float(ds["null_mean"].sel(kind="unique").sum())
    out = names(ds.isel(category=np.flatnonzero(ds["pvalue_adjusted"] < SIGNIFICANT)))
    more = f"more unique {ds['value'].attrs['units']} than under permuted labels after correction"
    return [
        f"{text}; permuted labels give {count(null)} and {count(null_unique)} on average.",
        f"Categories with {more}: {len(out)} of {c}{f' ({listed(out)})' if out else ''}.",
    ]


def _counted(ds: xr.Dataset, prefix: str = "", **where: str) -> str:
    """Return one cell as text, e.g. "120 (95 % CI 100–140)"; no interval if all resamples agree, as for no member."""
    cell = ds.sel(where)
    text, low, high = (count(float(cell.get(f"{prefix}{name}", np.nan))) for name in ("value", "ci_low", "ci_high"))
    return text if low in ("nan", high) else f"{text} ({100 * ds.attrs['confidence_level']:g} % CI {low}–{high})"


def caption(ds: xr.Dataset) -> str:
    marks = (
        "Dashed: mean over permuted labels (by layer: averaged over categories). Bold with an asterisk: more than "
        "under permuted labels after correction (p < 0.05)."
    )
    text = f"General and unique {ds.attrs['member_title']}, {ds.attrs['model']} (ours). Members of a category:"
    return f"{text} {ds.attrs['member_rule']}. {marks if 'null_mean' in ds else ds.attrs.get('reason', '')}".rstrip()


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw each category's unique members as bars, or all members if there is one category; see `plotting.bars`."""
    one, unit = ds.sel(kind="members" if "reason" in ds.attrs else "unique"), ds["value"].attrs["units"]
    style = {"label": unit if "reason" in ds.attrs else f"unique {unit}"} | style
    if "null_mean" in ds:
        style = {"null": one["null_mean"].values, "marks": ds["pvalue_adjusted"].values < SIGNIFICANT} | style
    return category_bars(one, ax, **style)


def figure(ds: xr.Dataset) -> Figure:
    """Draw four panels: unique members per category, and general, common and unique members per layer."""
    drawn, axes = plotting.panels(1 if "reason" in ds.attrs else 4, columns=2)
    plot(ds, axes[0])
    whole = ds.drop_dims("category").rename(overall_kind="category")
    panels = [
        ("general (all categories)", "overall_layer_", whole.sel(category=["general"])),
        ("common (several categories)", "overall_layer_", whole.sel(category=["common"])),
        ("unique (one category)", "layer_", ds.sel(kind="unique")),
    ]
    for ax, (title, prefix, one) in zip(axes[1:], panels, strict=False):
        null = one[f"{prefix}null_mean"].values.mean(axis=0) if "null_mean" in ds else None
        style = {"label": ds["value"].attrs["units"], "title": title, "legend": prefix == "layer_"}
        layer_curves(one, ax, variable=f"{prefix}value", prefix=prefix, null=null, **style)
        ax.locator_params(axis="y", integer=True)
    return drawn


def tables(ds: xr.Dataset) -> dict[str, Any]:
    """Return one tidy DataFrame per set of dimensions, with a name like "kind_category"."""
    kept = ds.drop_dims("member").data_vars.items()
    return frames(ds, {"_".join(map(str, held.dims)): str(name) for name, held in kept})


MEASURE = measure(
    general_unique,
    "General and unique neurons",
    OURS,
    "isn",
    "A neuron is a member of a category if it is an ISN of at least a given fraction (default: half) of the category's "
    "instructions. Members of all categories are general, members of only one are unique, and all others are common. "
    "SPARCOM, section 5.1, uses these words without an equation; the rule is ours.",
)
_WORDS = "Members of all categories are general, members of only one are unique, and all others are common."
EXPERTS = replace(
    MEASURE,
    name="general_unique_experts",
    title="General and unique experts",
    needs="experts",
    definition="An expert is a member of a category if at least a given fraction (default: half) of the category's "
    f"instructions activate it. The paper calls activated experts ISEs (SPARCOM, section 3.1). {_WORDS} "
    "The rule is ours.",
)
MOST_USED = replace(
    EXPERTS,
    name="general_unique_most_used_experts",
    title="General and unique among the most used experts",
    definition="An expert is a member of a category if it is among the k (default: 5) most used of its layer in at "
    f"least a given fraction (default: half) of the category's instructions. {_WORDS} The rule is ours.",
    compute=partial(general_unique, most_used=True),
)
