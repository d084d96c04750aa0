"""General and unique experts: those that instructions activate at all (ISEs), and those that they use most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.general_unique.dataset import member_dataset, member_measure
from sparcom_analysis.measures.general_unique.members import expert_membership


def general_unique_experts(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return which activated experts are members of all categories, of several, and of one alone (ours).

    An expert is a member of a category if at least `min_share` of its instructions activate it: the paper's ISEs.

    Args and Returns: as for `general_unique`, of counts as `find_ises` returns them.
    """
    experts = experts.with_options(**changes)
    return member_dataset(experts, expert_membership(experts, experts.activated), progress, "activated by", "experts")


def general_unique_most_used_experts(
    experts: ExpertCounts, progress: Progress | None = None, **changes: Any
) -> xr.Dataset:
    """Return the same for the `top_experts` most used experts per layer and all that tie with the last (ours).

    An expert that an instruction does not activate is never among them. If a layer has no more experts than
    `top_experts`, they are the activated ones.
    """
    experts = experts.with_options(**changes)
    k = experts.options.top_experts
    rule = f"among the {k} most used of their layer in"
    what = {"population": "most_used_expert", "population_title": "most used experts", "top_experts": k}
    membership = expert_membership(experts, experts.most_used())
    return member_dataset(experts, membership, progress, rule, "most used experts", **what)


_RULE = "General: a member of all categories. Unique: of one alone. Common: of several. The rule is ours."

MEASURE = member_measure(
    name="general_unique_experts",
    title="General and unique experts",
    needs="experts",
    definition=(
        "An expert is a member of a category if at least a share of the category's instructions activate it, by "
        f"default half. The paper calls activated experts ISEs (SPARCOM, section 3.1). {_RULE}"
    ),
    compute=general_unique_experts,
)
MOST_USED = replace(
    MEASURE,
    name="general_unique_most_used_experts",
    title="General and unique among the most used experts",
    definition=(
        "An expert is a member of a category if it is among the k most used of its layer, by default 5, in at least a "
        f"share of the category's instructions, by default half. {_RULE}"
    ),
    compute=general_unique_most_used_experts,
)
