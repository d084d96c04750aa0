"""The form of metrics.json: what another program may rely on.

Field descriptions are the documentation (docs/metrics.md lists them; a test holds the two together). Values that do not
exist, such as the mean of no pair, are null, and so are parts that were not computed; `not_computed` says why. Parts
that only archives of a mixture of experts have (`schema.experts`) are left out of the others. The JSON Schema is
written beside the file (`json_schema`).
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.alteration import IseAlteration, IsnAlteration, IsnVenn
from sparcom_analysis.schema.chance import ChanceTests
from sparcom_analysis.schema.components import GeneralUnique, LapeNeurons
from sparcom_analysis.schema.experts import (
    ComponentName,
    CorrelationMatrix,
    ExpertFrequencies,
    ExpertShifts,
    MoeFacts,
    TopExpertLists,
)
from sparcom_analysis.schema.intervals import IntervalBounds, ResamplingFacts
from sparcom_analysis.schema.length import LengthMatched
from sparcom_analysis.schema.part import Part as _Part


def _without_none(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The fields without those of these names that are null."""
    return {name: value for name, value in fields.items() if value is not None or name not in names}


class ArchiveFacts(_Part):
    """What was analysed, copied from the archive."""

    name: str = Field(description="Last part of the archive's path.")
    format_version: int = Field(description="Version of the archive format.")
    created: str = Field(description="When the extraction started.")
    state: Literal["open", "complete"] = Field(description="`open` where the extraction had not ended.")
    model: str = Field(description="Model id: its name on a hub, or its folder.")
    model_name: str = Field(description="Last part of the model id, what figures and sentences call it.")
    revision: str = Field(description="Model revision, empty where none is known.")
    architecture: str = Field(description="Model class.")
    dtype: str = Field(description="Data type the model ran in.")
    quantization: str | None = Field(description="Quantisation method, null where none.")
    activation: str = Field(description="Activation function of the feed-forward layers.")
    layers: int = Field(description="Layers with captured neurons.")
    neurons: int = Field(description="Neurons of one layer.")
    predicate: str = Field(description="When a neuron counts as active, equation 5.")
    granularity: Literal["token", "count"] = Field(
        default="token", description="`token`: masks were counted; `count`: the archive holds counts."
    )
    positions: str = Field(description="Which rows the archive holds: prompt, response or all.")
    prompt_format: str = Field(description="raw or chat.")
    dataset: str = Field(description="Name of the instruction set, empty where none was given.")
    dataset_sha256: str = Field(description="Checksum of the instruction set.")
    vllm: str = Field(description="Version of the engine that ran the model.")
    moe: MoeFacts | None = Field(default=None, description="Its mixture-of-experts layers; left out where it has none.")

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(dump(self), ("moe",))


class Settings(_Part):
    """What was asked for."""

    rows: Literal["prompt", "response", "all"] = Field(description="Whose tokens T of equation 6 counts.")
    selection: Literal["epsilon", "threshold"] = Field(description="Rule of equation 7.")
    epsilon: float | None = Field(description="Share of all neurons selected; null with the other rule.")
    threshold: float | None = Field(description="Least p of a selected neuron; null with the other rule.")
    exclude_self_pairs: bool = Field(description="Whether figure and report leave pairs with itself out.")
    special_tokens: Literal["count", "leave_out"] = Field(
        default="count",
        description="Whether special tokens (BOS, marks of a chat template) are in T and in the counts.",
    )
    counted_tokens: Literal["all", "content"] = Field(
        default="all", description="`content`: tokens that a chat template or the tokenizer wrote are not in T."
    )


class Versions(_Part):
    """What computed it."""

    sparcom: str = Field(description="This package.")
    numpy: str = Field(description="NumPy.")
    numba: str = Field(description="Numba.")
    zarr: str = Field(description="zarr-python.")


class LeftOut(_Part):
    """Instructions that were not used, by reason."""

    pending: int = Field(description="Not run yet.")
    failed: int = Field(description="Failed; the archive says why.")
    cancelled: int = Field(description="Cancelled.")
    without_rows: int = Field(description="Complete, but without a row of the kind asked for.")
    unknown_origin: int = Field(
        default=0, description="With `--tokens content`: where their tokens come from is unknown."
    )


class PromptOrigins(_Part):
    """Who wrote the prompt tokens of the instructions used, those of unknown origin left out."""

    prompt: int = Field(description="Prompt tokens, whether they count or not.")
    template: int = Field(description="Of these, tokens that the chat template wrote.")
    special: int = Field(description="Of these, special tokens outside of a template, such as BOS.")
    share: float = Field(description="Share of template and special tokens in all prompt tokens, 0 to 1.")


class CategoryFacts(_Part):
    """One category."""

    category: str = Field(description='Its name; "(none)" where instructions carry none.')
    instructions: int = Field(description="Instructions used.")
    left_out: int = Field(description="Instructions not used.")
    tokens: int = Field(description="Rows used, one a token.")
    mean_tokens: float | None = Field(description="Rows an instruction; null where none was used.")
    mean_isn: float | None = Field(description="ISNs an instruction, over all layers; null where none was used.")


class InstructionFacts(_Part):
    """Which instructions the numbers rest on."""

    total: int = Field(description="In the archive.")
    used: int = Field(description="Complete, with rows of the kind asked for.")
    tokens: int = Field(description="Rows used, one a token.")
    left_out: LeftOut = Field(description="The others, by reason.")
    special_token_ids: list[int] = Field(
        default=[], description="Which token ids were left out as special; empty if they count."
    )
    special_rows: int = Field(default=0, description="Rows of special tokens left out.")
    template_rows: int = Field(
        default=0, description="With `--tokens content`: rows of template and special tokens left out."
    )
    origins: PromptOrigins | None = Field(
        default=None, description="Who wrote the prompt tokens; null where the archive does not say."
    )
    by_category: list[CategoryFacts] = Field(description="In order of first appearance.")


class SetSizes(_Part):
    """How large the ISN sets are: ties at the threshold make them larger than ε asks for."""

    wanted: int | None = Field(description="⌈ε · N⌉; null with the threshold rule.")
    mean: float = Field(description="Over all instructions used.")
    minimum: int = Field(description="Smallest set.")
    maximum: int = Field(description="Largest set.")
    empty: int = Field(description="Instructions without any ISN.")


class CategoryMatrix(IntervalBounds):
    """A symmetric matrix over categories."""

    categories: list[str] = Field(description="Names of rows and columns, in order of first appearance.")
    matrix: list[list[float | None]] = Field(description="Mean Jaccard index, 0 to 1; null where there is no pair.")


class LayerMeans(IntervalBounds):
    """Figure 5."""

    categories: list[str] = Field(description="Names of the rows.")
    layer_ids: list[int] = Field(description="Layer of each column, as the model numbers them.")
    mean_count: list[list[float]] = Field(description="ISNs of an instruction in the layer, mean over the category.")


class ComponentMetrics(_Part):
    """The measures of one component's neurons."""

    component: ComponentName = Field(description="Whose neurons: the archive's name of the component.")
    experts: int = Field(description="Experts of a layer that the router chooses among; 1 where it does not.")
    neurons: int = Field(description="Neurons of one layer, or of one expert that is chosen.")
    isn_size: SetSizes = Field(description="Sizes of the ISN sets.")
    isn_similarity: CategoryMatrix = Field(description="Equation 10, pairs with itself counted.")
    isn_similarity_without_self: CategoryMatrix = Field(description="Equation 10 over pairs of two instructions.")
    isn_by_layer: LayerMeans = Field(description="ISNs by layer and category.")
    isn_alteration: IsnAlteration | None = Field(default=None, description="Equation 15; null without a tuned archive.")
    isn_venn: IsnVenn | None = Field(default=None, description="Figure 6; null without a tuned archive.")


class NotComputed(_Part):
    """A part of metrics.json that is null, or lacks something, and why."""

    field: str = Field(description="Name of the part.")
    reason: str = Field(description="Why, in a sentence.")


class Metrics(_Part):
    """metrics.json."""

    schema_version: Literal[1, 2] = Field(
        default=2,
        description="Version of this form; 1 lacked most parts, and its `ise_correlation` the pairs with itself.",
    )
    archive: ArchiveFacts = Field(description="What was analysed.")
    settings: Settings = Field(description="What was asked for.")
    versions: Versions = Field(description="What computed it.")
    instructions: InstructionFacts = Field(description="Which instructions were used.")
    categories: list[str] = Field(
        default=[], description="Names of the categories with a used instruction, in order of first appearance."
    )
    isn_size: SetSizes = Field(description="Sizes of the ISN sets.")
    isn_similarity: CategoryMatrix = Field(description="Equation 10, pairs with itself counted.")
    isn_similarity_without_self: CategoryMatrix = Field(description="Equation 10 over pairs of two instructions.")
    isn_by_layer: LayerMeans = Field(description="ISNs by layer and category.")
    isn_alteration: IsnAlteration | None = Field(default=None, description="Equation 15; null without a tuned archive.")
    isn_venn: IsnVenn | None = Field(default=None, description="Figure 6; null without a tuned archive.")
    general_unique: GeneralUnique | None = Field(
        default=None, description="Components that all categories share, and those of one alone."
    )
    lape: LapeNeurons | None = Field(default=None, description="Neurons selected by LAPE.")
    length_matched: LengthMatched | None = Field(default=None, description="What length explains: T matched.")
    tests: ChanceTests | None = Field(default=None, description="What chance explains: shuffled categories.")
    intervals: ResamplingFacts | None = Field(default=None, description="How every `low` and `high` was drawn.")
    warnings: list[str] = Field(
        default=[], description="Sentences that a reader must know first: about prompts, dead layers, instructions."
    )
    not_computed: list[NotComputed] = Field(default=[], description="What is null or lacks intervals, and why.")
    component: ComponentName | None = Field(
        default=None, description="Whose neurons the `isn_` parts above and `mean_isn` are about."
    )
    components: list[ComponentMetrics] | None = Field(
        default=None, description="The same parts for every component of a mixture of experts, that one first."
    )
    expert_frequency: ExpertFrequencies | None = Field(default=None, description="Equation 12.")
    ise_correlation: CorrelationMatrix | None = Field(
        default=None, description="Equation 14, pairs with itself counted."
    )
    ise_correlation_without_self: CorrelationMatrix | None = Field(
        default=None, description="Equation 14 over pairs of two instructions."
    )
    top_experts: TopExpertLists | None = Field(default=None, description="Table 6.")
    expert_shift: ExpertShifts | None = Field(default=None, description="What tuning shifts; with `--tuned`.")
    ise_alteration: IseAlteration | None = Field(default=None, description="Equation 16, table 2; with `--tuned`.")

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(dump(self), _EXPERT_PARTS)

    @property
    def shown_similarity(self) -> CategoryMatrix:
        """The matrix that figure and report show."""
        return self.isn_similarity_without_self if self.settings.exclude_self_pairs else self.isn_similarity

    @property
    def shown_correlation(self) -> CorrelationMatrix | None:
        """The matrix of experts that figure and report show; None for a dense model."""
        return self.ise_correlation_without_self if self.settings.exclude_self_pairs else self.ise_correlation

    @property
    def layer_width(self) -> int:
        """Neurons of one layer, over all its experts."""
        part = self._own
        return self.archive.neurons if part is None else part.experts * part.neurons

    @property
    def subject(self) -> str:
        """What figures and sentences call the model, with the component where it has several."""
        name = self.archive.model_name
        return name if self.component is None else f"{name} ({TITLES[self.component]})"

    @property
    def _own(self) -> ComponentMetrics | None:
        return next((part for part in self.components or [] if part.component == self.component), None)

    def of(self, component: ComponentName) -> Metrics:
        """The same with the parts of another component in the place of the first's, for figures and sentences."""
        (part,) = [part for part in self.components or [] if part.component == component]
        return self.model_copy(update={name: getattr(part, name) for name in ("component", *COMPONENT_PARTS)})


COMPONENT_PARTS = (
    "isn_size",
    "isn_similarity",
    "isn_similarity_without_self",
    "isn_by_layer",
    "isn_alteration",
    "isn_venn",
)
_EXPERT_PARTS = (
    "component",
    "components",
    "expert_frequency",
    "ise_correlation",
    "ise_correlation_without_self",
    "top_experts",
    "expert_shift",
    "ise_alteration",
)


def json_schema() -> bytes:
    """The JSON Schema of metrics.json."""
    return f"{json.dumps(Metrics.model_json_schema(), indent=2, ensure_ascii=False)}\n".encode()
