"""General and unique neurons and experts: members of all categories, of several, of one alone (see `members`)."""

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

MOST_DRAWS = {"n_resamples": 200, "n_permutations": 500}  # a draw costs more here than weights of means do
ONE_CATEGORY = "There is only one category, so no member is general or unique."


def general_unique(
    subject: IsnSets | ExpertCounts, progress: Progress | None = None, *, most_used: bool = False, **changes: Any
) -> xr.Dataset:
    """Return which neurons or experts are members of all categories, of several, and of one alone (ours).

    A neuron is a member of a category if it is an ISN of at least `min_share` of its instructions; an expert if at
    least `min_share` of them activate it (the paper's ISEs).

    Args:
        subject: ISN sets for neurons, or expert counts for experts: what `find_isns` or `find_ises` returns.
        most_used: of activated experts, count the `top_experts` most used per layer, and ties with the last, alone.
        **changes: `min_share`, `top_experts`, `n_resamples` (at most 200 are drawn), `confidence_level`,
            `n_permutations` (at most 500), `seed`: see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high`, and `null_mean` over permuted labels, are numbers of members. value (kind,
        category): all members of a category, and those unique to it; layer_value has a layer axis more. overall_value
        (overall_kind): general members, and those common to several categories; overall_layer_value.
        pvalue, pvalue_adjusted (category): that as many are unique under permuted labels; Holm's correction.
        fraction_value (fraction_kind, category): general and unique members over the category's members, 0 to 1.
        instructions, needed (category): instructions, and in how many of them a member must be.
        member_category, member_layer, member_expert, member_neuron, member_kind (member): one entry per category and
        member. A neuron of a routed expert has both ids, `member_neuron` is then within the expert.
        With one category there are members alone, and the attribute `reason`.
    """
    subject = subject.with_options(**changes)
    reduced = {name: min(most, getattr(subject.options, name)) for name, most in MOST_DRAWS.items()}
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
    """Return attributes: name of the measure, what members are called, and the rule that makes them members."""
    options, share = subject.options, f"at least {100 * subject.options.min_share:.4g} % of its instructions"
    if isinstance(subject, IsnSets):
        if most_used:
            raise InvalidInputError("most_used is for experts; give what find_ises returns, or leave it out")
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
    alone = float(ds["value"].sel(kind="unique").sum())
    if not (total := alone + float(ds["overall_value"].sum())):
        return [f"There are no {of}."]
    text = (
        f"Of {count(total)} {of}, {_counted(ds, 'overall_', overall_kind='general')} {'is' if general == 1 else 'are'} "
        f"general (members of all {c} categories) and {count(alone)} {'is' if alone == 1 else 'are'} unique to one"
    )
    if "null_mean" not in ds:
        return [f"{text}."]
    null = float(ds["overall_null_mean"].sel(overall_kind="general"))
    null_alone = float(ds["null_mean"].sel(kind="unique").sum())
    out = names(ds.isel(category=np.flatnonzero(ds["pvalue_adjusted"] < SIGNIFICANT)))
    more = f"more unique {ds['value'].attrs['units']} than under permuted labels after correction"
    return [
        f"{text}; permuted labels give {count(null)} and {count(null_alone)} on average.",
        f"Categories with {more}: {len(out)} of {c}{f' ({listed(out)})' if out else ''}.",
    ]


def _counted(ds: xr.Dataset, prefix: str = "", **where: str) -> str:
    """Return "120 (95 % CI 100–140)" of one cell."""
    cell = ds.sel(where)
    text, low, high = (count(float(cell.get(f"{prefix}{name}", np.nan))) for name in ("value", "ci_low", "ci_high"))
    return text if low == "nan" else f"{text} ({100 * ds.attrs['confidence_level']:g} % CI {low}–{high})"


def caption(ds: xr.Dataset) -> str:
    marks = (
        "Dashed: mean over permuted labels; per layer the mean of all categories. Bold with an asterisk: more than "
        "under permuted labels after correction (p < 0.05)."
    )
    text = f"General and unique {ds.attrs['member_title']}, {ds.attrs['model']} (ours). Members of a category:"
    return f"{text} {ds.attrs['member_rule']}. {marks if 'null_mean' in ds else ds.attrs.get('reason', '')}".rstrip()


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw each category's unique members as bars into `ax`, or all members of a single one; see `plotting.bars`."""
    one, unit = ds.sel(kind="members" if "reason" in ds.attrs else "unique"), ds["value"].attrs["units"]
    style = {"label": unit if "reason" in ds.attrs else f"unique {unit}"} | style
    if "null_mean" in ds:
        style = {"null": one["null_mean"].values, "marks": ds["pvalue_adjusted"].values < SIGNIFICANT} | style
    return category_bars(one, ax, **style)


def figure(ds: xr.Dataset) -> Figure:
    """Draw unique members per category, and general, common and unique members per layer: four panels."""
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
    """Return one tidy DataFrame per set of dimensions, named after them, such as "kind_category"."""
    kept = ds.drop_dims("member").data_vars.items()
    return frames(ds, {"_".join(map(str, held.dims)): str(name) for name, held in kept})


MEASURE = measure(
    general_unique,
    "General and unique neurons",
    OURS,
    "isn",
    "A neuron is a member of a category if it is an ISN of at least a share of the category's instructions, by "
    "default half. It is general if it is a member of all categories, unique if of one alone, common otherwise. "
    "SPARCOM, section 5.1, uses these words without an equation; the rule is ours.",
)
_WORDS = "General: a member of all categories. Unique: of one alone. Common: of several. The rule is ours."
EXPERTS = replace(
    MEASURE,
    name="general_unique_experts",
    title="General and unique experts",
    needs="experts",
    definition="An expert is a member of a category if at least a share of the category's instructions activate it, by "
    f"default half. The paper calls activated experts ISEs (SPARCOM, section 3.1). {_WORDS}",
)
MOST_USED = replace(
    EXPERTS,
    name="general_unique_most_used_experts",
    title="General and unique among the most used experts",
    definition="An expert is a member of a category if it is among the k most used of its layer, by default 5, in at "
    f"least a share of the category's instructions, by default half. {_WORDS}",
    compute=partial(general_unique, most_used=True),
)
