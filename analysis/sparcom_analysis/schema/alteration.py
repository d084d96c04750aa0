"""The parts of metrics.json about a fine-tuned twin: `isn_alteration`, `ise_alteration`, `isn_venn`; see `metrics`.

Lists are in the order of `categories` and `layer_ids`; what has no value is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparcom_analysis.schema.experts import ComponentName
from sparcom_analysis.schema.intervals import Values
from sparcom_analysis.schema.part import Part


class TwinFacts(Part):
    """Which twin, and how its instructions were matched with the base's."""

    archive: str = Field(description="Last part of the tuned archive's path.")
    model: str = Field(description="Model id of the tuned model.")
    model_name: str = Field(description="Last part of the model id, what figures and sentences call it.")
    state: Literal["open", "complete"] = Field(description="`open` where the tuned archive's extraction had not ended.")
    architecture: str = Field(description="Model class of the tuned model.")
    prompt_format: str = Field(description="How the tuned model's prompts were formatted: raw or chat.")
    same_tokenizer: bool | None = Field(description="Whether both models have one tokenizer; null where not known.")
    matched: int = Field(description="Instructions complete in both archives, by id; all here is over these.")
    only_base: int = Field(description="Instructions of the base archive that the tuned one lacks.")
    only_tuned: int = Field(description="Instructions of the tuned archive that the base lacks.")
    different_rows: int = Field(description="Of the matched, those whose number of tokens T differs.")
    different_tokens: int | None = Field(
        description="Of the matched, those that did not read the same token ids; null where an archive holds counts."
    )
    different_categories: int = Field(
        description="Of the matched, those of another category in the tuned archive; the base's categories are used."
    )
    notes: list[str] = Field(description="In sentences: what differs beside the tuning, and what is not known.")


class IsnAlterationOverall(Part):
    """Equation 15 over all matched instructions."""

    instructions: int = Field(description="With a value.")
    undefined: int = Field(description="Without: neither model has an ISN.")
    overlap: float | None = Field(description="Mean overlap O.")
    overlap_low: float | None = Field(description="Lower end of its interval: 1 minus `high`.")
    overlap_high: float | None = Field(description="Upper end of it: 1 minus `low`.")
    alteration: float | None = Field(description="Mean alteration A = 1 − O.")
    low: float | None = Field(description="Lower end of the interval of the alteration; null where there is none.")
    high: float | None = Field(description="Upper end.")
    base_isn: float = Field(description="ISNs of a matched instruction in the base model, mean.")
    tuned_isn: float = Field(description="The same in the tuned model.")
    layer_alteration: Values = Field(description="By layer: mean alteration among the neurons of that layer.")
    layer_low: Values = Field(description="By layer: lower end of its interval.")
    layer_high: Values = Field(description="By layer: upper end.")
    base_by_layer: list[float] = Field(description="By layer: ISNs of a matched instruction in the base model, mean.")
    base_by_layer_low: Values = Field(description="By layer: lower end of the interval of `base_by_layer`.")
    base_by_layer_high: Values = Field(description="By layer: upper end of it.")
    tuned_by_layer: list[float] = Field(description="By layer: the same in the tuned model.")
    tuned_by_layer_low: Values = Field(description="By layer: lower end of the interval of `tuned_by_layer`.")
    tuned_by_layer_high: Values = Field(description="By layer: upper end of it.")


class IsnAlteration(Part):
    """Equation 15, table 1, and figure 5 of both models."""

    component: ComponentName = Field(description="Whose neurons.")
    twin: TwinFacts = Field(description="The tuned model and the instructions of both.")
    categories: list[str] = Field(description="Names of the categories with a matched instruction.")
    layer_ids: list[int] = Field(description="Layers, as the model numbers them.")
    instructions: list[int] = Field(description="Matched instructions with a value.")
    undefined: list[int] = Field(description="Matched instructions without: neither model has an ISN.")
    overlap: Values = Field(description="Mean overlap O of equation 15, 0 to 1.")
    overlap_low: Values = Field(description="Lower end of the interval of the overlap: 1 minus `high`.")
    overlap_high: Values = Field(description="Upper end of it: 1 minus `low`.")
    alteration: Values = Field(description="Mean alteration A = 1 − O, 0 to 1.")
    low: Values = Field(description="Lower end of the interval of the alteration; null where there is none.")
    high: Values = Field(description="Upper end.")
    base_isn: list[float] = Field(description="ISNs of a matched instruction in the base model, mean.")
    tuned_isn: list[float] = Field(description="The same in the tuned model.")
    layer_alteration: list[Values] = Field(
        description="Category × layer: mean alteration among the neurons of that layer; null where no instruction "
        "has an ISN there."
    )
    layer_low: list[Values] = Field(description="Category × layer: lower end of its interval.")
    layer_high: list[Values] = Field(description="Category × layer: upper end.")
    base_by_layer: list[list[float]] = Field(
        description="Category × layer: ISNs of a matched instruction in the layer, mean, in the base model."
    )
    base_by_layer_low: list[Values] = Field(
        description="Category × layer: lower end of the interval of `base_by_layer`; null where there is none."
    )
    base_by_layer_high: list[Values] = Field(description="Category × layer: upper end of it.")
    tuned_by_layer: list[list[float]] = Field(description="Category × layer: the same in the tuned model.")
    tuned_by_layer_low: list[Values] = Field(
        description="Category × layer: lower end of the interval of `tuned_by_layer`; null where there is none."
    )
    tuned_by_layer_high: list[Values] = Field(description="Category × layer: upper end of it.")
    overall: IsnAlterationOverall = Field(description="The same over all matched instructions.")


class IseAlterationOverall(Part):
    """Equation 16 over all matched instructions."""

    instructions: int = Field(description="With a value.")
    undefined: int = Field(description="Without: in a model its expert frequencies have no variance.")
    correlation: float | None = Field(description="Mean correlation r.")
    correlation_low: float | None = Field(description="Lower end of the interval of r: 1 minus `high`.")
    correlation_high: float | None = Field(description="Upper end of the interval of r: 1 minus `low`.")
    alteration: float | None = Field(description="Mean alteration 1 − r.")
    low: float | None = Field(description="Lower end of the interval of the alteration; null where there is none.")
    high: float | None = Field(description="Upper end.")


class IseAlteration(Part):
    """Equation 16 and table 2."""

    twin: TwinFacts = Field(description="The tuned model and the instructions of both.")
    categories: list[str] = Field(description="Names of the categories with a matched instruction.")
    instructions: list[int] = Field(description="Matched instructions with a value.")
    undefined: list[int] = Field(description="Matched instructions without: expert frequencies have no variance.")
    correlation: Values = Field(description="Mean correlation r of equation 16, -1 to 1.")
    correlation_low: Values = Field(description="Lower end of the interval of r: 1 minus `high`.")
    correlation_high: Values = Field(description="Upper end of the interval of r: 1 minus `low`.")
    alteration: Values = Field(description="Mean alteration 1 − r, 0 to 2.")
    low: Values = Field(description="Lower end of the interval of the alteration; null where there is none.")
    high: Values = Field(description="Upper end.")
    overall: IseAlterationOverall = Field(description="The same over all matched instructions.")


class VennInstruction(Part):
    """The ISNs of one instruction in both models."""

    id: str = Field(description="Of the instruction.")
    category: str = Field(description="Its category.")
    alteration: float | None = Field(description="A of equation 15.")
    only_base: list[int] = Field(description="By layer: ISNs of the base model alone.")
    both: list[int] = Field(description="By layer: ISNs of both models.")
    only_tuned: list[int] = Field(description="By layer: ISNs of the tuned model alone.")


class IsnVenn(Part):
    """Figure 6."""

    component: ComponentName = Field(description="Whose neurons.")
    tuned_name: str = Field(description="What figures and sentences call the tuned model.")
    layer_ids: list[int] = Field(description="Layers, as the model numbers them.")
    typical: bool = Field(
        description="Whether the instructions were chosen as nearest the median alteration of their category, one of "
        "each; otherwise they were asked for."
    )
    instructions: list[VennInstruction] = Field(description="Those shown.")
