"""The parts of metrics.json that archives of a mixture of experts have; see `metrics`.

Nested lists are in the order of their dimensions, which the descriptions name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparcom_analysis.schema.intervals import IntervalBounds, Values
from sparcom_analysis.schema.part import Part

ComponentName = Literal["neuron", "expert_neuron", "shared_expert_neuron"]


class MoeFacts(Part):
    """The mixture-of-experts layers of the model."""

    layer_ids: list[int] = Field(description="Layers with experts, as the model numbers them.")
    experts: int = Field(description="Experts of a layer that the router chooses among.")
    experts_per_token: int = Field(description="Experts that a token chooses in a layer.")
    neurons: int = Field(description="Neurons of one expert.")
    shared_neurons: int = Field(description="Neurons of a layer's shared experts together; 0 where there are none.")


class ExpertFrequencies(Part):
    """Equation 12: how often the routers choose each expert."""

    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    layer_ids: list[int] = Field(description="Layers with experts, as the model numbers them.")
    experts: int = Field(description="Experts of a layer.")
    experts_per_token: int = Field(description="What the frequencies of a layer add up to.")
    mean: list[list[list[float]]] = Field(
        description="Category × layer × expert: f of equation 11, mean over the category's instructions."
    )
    overall: list[list[float]] = Field(description="Layer × expert: the mean over all instructions.")
    mean_low: list[list[Values]] | None = Field(
        default=None, description="Category × layer × expert: lower end of the interval of `mean`; null without."
    )
    mean_high: list[list[Values]] | None = Field(default=None, description="Category × layer × expert: upper end.")
    overall_low: list[Values] | None = Field(
        default=None, description="Layer × expert: lower end of the interval of `overall`; null without."
    )
    overall_high: list[Values] | None = Field(default=None, description="Layer × expert: upper end.")


class CorrelationMatrix(IntervalBounds):
    """Equation 14."""

    categories: list[str] = Field(description="Names of rows and columns, in order of first appearance.")
    matrix: list[list[float | None]] = Field(
        description="Mean Pearson correlation over pairs of instructions, -1 to 1; null where no pair has one."
    )
    undefined_instructions: int = Field(
        description="Instructions whose frequencies have no variance, so that no correlation is defined: in no mean."
    )


class TopExpertLists(Part):
    """Table 6: the most chosen experts."""

    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    layer_ids: list[int] = Field(description="Layers with experts, as the model numbers them.")
    expert: list[list[list[int]]] = Field(
        description="Category × layer × rank: expert ids, the most frequent first, ties by lower id."
    )
    frequency: list[list[list[float]]] = Field(description="Category × layer × rank: their mean frequencies.")
    overall_expert: list[list[int]] = Field(description="Layer × rank: the same over all instructions.")
    overall_frequency: list[list[float]] = Field(description="Layer × rank: their mean frequencies.")
    frequency_low: list[list[Values]] | None = Field(
        default=None,
        description="Category × layer × rank: lower end of the interval of the frequency of that expert, which is not "
        "chosen again in each draw; null without.",
    )
    frequency_high: list[list[Values]] | None = Field(default=None, description="Category × layer × rank: upper end.")
    overall_frequency_low: list[Values] | None = Field(
        default=None, description="Layer × rank: the same of `overall_frequency`."
    )
    overall_frequency_high: list[Values] | None = Field(default=None, description="Layer × rank: upper end.")
    share: list[list[float]] = Field(
        default=[], description="Category × layer: share of the category's choices that goes to these experts."
    )
    share_low: list[Values] | None = Field(
        default=None, description="Category × layer: lower end of its interval, of these same experts; null without."
    )
    share_high: list[Values] | None = Field(default=None, description="Category × layer: upper end of it.")


class ExpertShifts(Part):
    """What fine-tuning shifts: the archive's model against the one of `--tuned`, over the instructions of both."""

    tuned_archive: str = Field(description="Last part of the tuned archive's path.")
    tuned_model: str = Field(description="Model id of the tuned model.")
    matched: int = Field(description="Instructions complete in both archives, by id; the means are over these.")
    only_base: int = Field(description="Instructions used above that the tuned archive lacks.")
    only_tuned: int = Field(description="Instructions of the tuned archive that the base lacks.")
    different_rows: int = Field(description="Of the matched, those whose number of tokens differs.")
    categories: list[str] = Field(description="Names of the categories with a matched instruction.")
    layer_ids: list[int] = Field(description="Layers with experts, as the model numbers them.")
    base: list[list[list[float]]] = Field(description="Category × layer × expert: mean frequency in the base model.")
    tuned: list[list[list[float]]] = Field(description="Category × layer × expert: mean frequency in the tuned model.")
    overall_base: list[list[float]] = Field(description="Layer × expert: base, over all matched instructions.")
    overall_tuned: list[list[float]] = Field(description="Layer × expert: tuned, over all matched instructions.")
    moved: list[list[float]] = Field(
        description="Category × layer: half the sum of absolute shifts over experts, choices a token that moved."
    )
    moved_low: list[Values] | None = Field(
        default=None, description="Category × layer: lower end of the interval of `moved`, centred on it; null without."
    )
    moved_high: list[Values] | None = Field(default=None, description="Category × layer: upper end of it.")
    top_base: list[list[list[int]]] = Field(description="Category × layer × rank: top experts of the base model.")
    top_tuned: list[list[list[int]]] = Field(description="Category × layer × rank: those of the tuned model.")
    top_kept: list[list[list[bool]]] = Field(
        description="Category × layer × rank: whether that one of `top_base` is among `top_tuned`."
    )
    overall_top_base: list[list[int]] = Field(description="Layer × rank: `top_base` over all matched instructions.")
    overall_top_tuned: list[list[int]] = Field(description="Layer × rank: `top_tuned` over all matched instructions.")
    overall_top_kept: list[list[bool]] = Field(description="Layer × rank: `top_kept` over all matched instructions.")
