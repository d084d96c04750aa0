"""General and unique neurons (the words of SPARCOM, section 5.1; the rule is ours)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.general_unique.dataset import member_dataset, member_measure
from sparcom_analysis.measures.general_unique.members import isn_membership
from sparcom_analysis.measures.measure import facts
from sparcom_analysis.measures.text import neurons_of


def general_unique(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return which neurons are members of all categories, of several, and of one alone (ours).

    A neuron is a member of a category if it is an ISN of at least `min_share` of its instructions.

    Args:
        isn: the sets, as `find_isns` returns them.
        progress: called with draws done and in all.
        **changes: `min_share`, `n_resamples` (at most 200 are drawn), `confidence_level`, `n_permutations` (at most
            500), `seed`: see `Options`.

    Returns:
        The variables of `member_dataset`.
    """
    isn = isn.with_options(**changes)
    title = neurons_of(xr.Dataset(attrs=facts(isn)))
    rule = {"top": isn.options.top, "min_frequency": isn.options.min_frequency}
    return member_dataset(isn, isn_membership(isn), progress, "ISNs of", title, **rule)


MEASURE = member_measure(
    name="general_unique",
    title="General and unique neurons",
    needs="isn",
    definition=(
        "A neuron is a member of a category if it is an ISN of at least a share of the category's instructions, by "
        "default half. It is general if it is a member of all categories, unique if of one alone, common otherwise. "
        "SPARCOM, section 5.1, uses these words without an equation; the rule is ours."
    ),
    compute=general_unique,
)
