"""The parts of metrics.json about general and unique components and LAPE: `general_unique`, `lape`; see `metrics`.

Lists are in the order of `categories` and `layer_ids`; what has no value is null. With one category nothing is general,
unique or shared: those fields are null, and `reason` says why.
"""

from __future__ import annotations

from pydantic import Field

from sparcom_analysis.components.memberships import ComponentKind
from sparcom_analysis.schema.experts import ComponentName
from sparcom_analysis.schema.part import Part

Shares = list[float | None]


class ComponentNumbers(Part):
    """How many components of one kind there are, with intervals."""

    by_layer: list[int] = Field(description="In each layer.")
    low: list[float] | None = Field(description="Lower ends of the intervals, by layer; null where there is none.")
    high: list[float] | None = Field(description="Upper ends.")
    total: int = Field(description="In all layers together.")
    total_low: float | None = Field(description="Lower end of its interval; null where there is none.")
    total_high: float | None = Field(description="Upper end.")


class ComponentGroups(Part):
    """General and unique components of one kind."""

    component: ComponentKind = Field(description="Whose neurons, or `expert` for the experts themselves.")
    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    layer_ids: list[int] = Field(description="Layers, as the model numbers them.")
    per_layer: int = Field(description="Components that a layer has, belonging to a category or not.")
    instructions: list[int] = Field(description="Instructions of each category.")
    needed: list[int] = Field(description="In how many of them a component must be to belong: ⌈share · instructions⌉.")
    reason: str | None = Field(description="Why nothing is general or unique; null where categories can be compared.")
    belonging: list[ComponentNumbers] = Field(description="Of each category: components that belong to it.")
    unique: list[ComponentNumbers] | None = Field(
        description="Of each category: components that belong to it and to no other."
    )
    shared: ComponentNumbers | None = Field(description="Components of two or more categories, but not of all.")
    general: ComponentNumbers | None = Field(description="Components of all categories.")
    general_chance: float | None = Field(description="Those in all layers with shuffled names, mean; null without.")
    shared_chance: float | None = Field(description="The same of shared components.")
    unique_chance: list[float] | None = Field(description="The same of components unique to each category.")
    unique_p: list[float] | None = Field(
        description="Of each category: how often shuffled names give as many unique components; Holm's correction."
    )
    general_share: Shares | None = Field(
        description="Share of each category's components that is general; null where it has none."
    )
    general_share_low: Shares | None = Field(description="Lower ends of its intervals; null where there is none.")
    general_share_high: Shares | None = Field(description="Upper ends.")
    unique_share: Shares | None = Field(description="Share of each category's components that is unique to it.")
    unique_share_low: Shares | None = Field(description="Lower ends of its intervals; null where there is none.")
    unique_share_high: Shares | None = Field(description="Upper ends.")


class GeneralUnique(Part):
    """Which components all categories share, and which are one category's alone."""

    share: float = Field(description="Share of a category's instructions from which a component is the category's.")
    top_experts: int = Field(description="Most chosen experts of a layer that are specific to an instruction.")
    resamples: int | None = Field(description="Draws of instructions behind the intervals; null without intervals.")
    confidence: float | None = Field(description="Share of the draws between the ends of an interval.")
    shuffles: int | None = Field(description="How often the names of the categories were shuffled; null if not.")
    seed: int | None = Field(description="Of draws and shuffles; null without either.")
    groups: list[ComponentGroups] = Field(description="Of each kind of component that the archive has.")


class LapeGroup(Part):
    """Neurons of one component that LAPE selects."""

    component: ComponentName = Field(description="Whose neurons.")
    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    layer_ids: list[int] = Field(description="Layers, as the model numbers them.")
    reason: str | None = Field(description="Why nothing is selected; null where categories can be compared.")
    tokens: list[int] = Field(description="Rows of each category, pooled over its instructions.")
    filter: float | None = Field(description="p that a neuron must be above in some category.")
    bar: float | None = Field(description="p that a selected neuron must be above to be specific to a category.")
    passed: int = Field(description="Neurons above the filter.")
    wanted: int = Field(description="Neurons to select: the top rate of all.")
    selected: int = Field(description="Neurons selected; fewer than wanted where fewer passed.")
    total: list[int] = Field(description="Of each category: neurons specific to it.")
    by_layer: list[list[int]] = Field(description="Category × layer: neurons specific to it.")
    unique_overlap: Shares = Field(
        description="Of each category: Jaccard index of these neurons and those unique to it by `general_unique`; null "
        "where both are empty or that was not computed."
    )


class LapeNeurons(Part):
    """Language activation probability entropy over categories: a second way of selecting, without intervals."""

    top_rate: float = Field(description="Share of all neurons that is selected.")
    filter_rate: float = Field(description="Percentile of all p that a neuron must pass in some category.")
    bar_rate: float = Field(description="Percentile of all p above which a neuron is specific to a category.")
    groups: list[LapeGroup] = Field(description="Of each component with neurons.")
