"""Types of the attribute `sparcom` on an archive's root group.

The attribute is written when the archive is created; only `state` changes afterwards. Version 1 refuses unknown keys on
purpose: they mean a newer or a foreign file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sparcom_data.errors import NewerFormatError, NotAnArchiveError

FORMAT_VERSION = 1

Positions = Literal["prompt", "response", "all"]
PromptFormat = Literal["raw", "chat"]
Granularity = Literal["token", "count"]
Predicate = Literal["gate > 0", "activation > 0"]
Component = Literal["neuron", "router", "expert_neuron", "shared_expert_neuron"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MoeInfo(_Section):
    """MoE layers of a model; null in the attributes of a dense model.

    `layer_ids` are in the order of the moe_layer axis. `experts_per_token` is the k of the top-k router. `neurons` is
    the width of one routed expert; `shared_neurons` is the total width of the shared experts, 0 if there are none.
    """

    layer_ids: list[int] = Field(min_length=1)
    experts: int = Field(ge=1, lt=65_535)
    experts_per_token: int = Field(ge=1)
    neurons: int = Field(ge=1)
    shared_neurons: int = Field(ge=0)


class ModelInfo(_Section):
    """The captured model. `layers` counts the decoder layers; `layer_ids` are those with a dense FFN, in the order of
    the layer axis; `neurons` is the width of each, 0 if there are none."""

    id: str
    revision: str = ""
    architecture: str
    dtype: str
    quantization: str | None = None
    layers: int
    layer_ids: list[int]
    neurons: int
    activation: str
    tokenizer_sha256: str
    moe: MoeInfo | None = None

    @property
    def components(self) -> list[Component]:
        """Components of the model that can be captured."""
        found: list[Component] = ["neuron"] if self.layer_ids else []
        if self.moe is not None:
            found += ["router", "expert_neuron"]
            if self.moe.shared_neurons:
                found.append("shared_expert_neuron")
        return found


class EngineInfo(BaseModel):
    """The engine that ran the model. Extra keys that an engine reports are kept unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    vllm: str
    torch: str
    device: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enforce_eager: bool


class CaptureInfo(_Section):
    """Capture options of the archive, and the predicate by which a neuron counts as active."""

    granularity: Granularity = "token"
    positions: Positions = "prompt"
    prompt_format: PromptFormat = "raw"
    add_special_tokens: bool = True
    max_tokens: int = Field(default=0, ge=0)
    predicate: Predicate = "gate > 0"
    components: list[Component] = ["neuron"]


class PromptInfo(_Section):
    """Special tokens of the tokenizer. `special_token_ids`: ascending ids that it marks as special (BOS, the markers of
    a chat template), whether or not a prompt has them. Ordinary words that a template writes are not included."""

    special_token_ids: list[int]

    @field_validator("special_token_ids")
    @classmethod
    def _ascending(cls, ids: list[int]) -> list[int]:
        if ids != sorted(set(ids)) or (ids and ids[0] < 0):
            raise ValueError(f"special token ids must be distinct, ascending and at least 0; they are {ids}")
        return ids


class DatasetInfo(_Section):
    """The data set of the instructions. `sha256` is over their canonical JSON lines."""

    name: str = ""
    sha256: str = ""


class ArchiveAttributes(_Section):
    """The whole attribute.

    prompts: null if the tokenizer does not list its special tokens; absent from archives of early releases.
    warnings: sentences about the prompts, from the submission.
    run: unique run id, 32 hexadecimal digits; null in archives of early releases.
    """

    format_version: Literal[1] = 1
    created: str
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    model: ModelInfo
    engine: EngineInfo
    capture: CaptureInfo
    prompts: PromptInfo | None = None
    dataset: DatasetInfo = DatasetInfo()
    warnings: list[str] = []
    state: Literal["open", "complete"] = "open"


def parse_attributes(raw: dict[str, Any], where: str) -> ArchiveAttributes:
    """Validate the attributes of a root group.

    Raises:
        NotAnArchiveError: the attribute `sparcom` is missing or does not fit format version 1.
        NewerFormatError: its `format_version` is later than this release knows.
    """
    section = raw.get("sparcom")
    if not isinstance(section, dict):
        raise NotAnArchiveError(
            f"a SPARCOM archive carries the attribute 'sparcom' on its root group; {where} has none. "
            "Give the path of an archive written by `sparcom extract` or `sparcom serve`"
        )
    version = section.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"this release reads archive format {FORMAT_VERSION}; {where} has format {version}. Upgrade sparcom"
        )
    try:
        return ArchiveAttributes.model_validate(section)
    except ValidationError as error:
        fields = ", ".join(".".join(str(part) for part in item["loc"]) for item in error.errors())
        raise NotAnArchiveError(
            f"the attribute 'sparcom' of {where} must fit archive format {FORMAT_VERSION}; these fields do not: "
            f"{fields}. The archive is damaged, or another program wrote it"
        ) from error
