"""The attribute `sparcom` of an archive's root group, as types.

Written once when the archive is created; only `state` changes afterwards. Unknown keys are kept out of version 1 on
purpose: a reader that meets one was given a newer or a foreign file.
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
    """The mixture-of-experts layers of a model; null in the attributes of a dense one.

    `layer_ids` are in the order of the moe_layer axis; `experts_per_token` is the k of the top-k router; `neurons` is
    the width of one routed expert, `shared_neurons` that of the shared experts together (0 where there are none).
    """

    layer_ids: list[int] = Field(min_length=1)
    experts: int = Field(ge=1, lt=65_535)
    experts_per_token: int = Field(ge=1)
    neurons: int = Field(ge=1)
    shared_neurons: int = Field(ge=0)


class ModelInfo(_Section):
    """What was captured from. `layers` counts the decoder layers; `layer_ids` are those with a dense FFN,
    in the order of the layer axis; `neurons` is the width of each (0 where there is none)."""

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
        """What can be captured of it."""
        found: list[Component] = ["neuron"] if self.layer_ids else []
        if self.moe is not None:
            found += ["router", "expert_neuron"]
            if self.moe.shared_neurons:
                found.append("shared_expert_neuron")
        return found


class EngineInfo(BaseModel):
    """What ran the model. Further facts that an engine reports are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    vllm: str
    torch: str
    device: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enforce_eager: bool


class CaptureInfo(_Section):
    """What was captured, and by which rule."""

    granularity: Granularity = "token"
    positions: Positions = "prompt"
    prompt_format: PromptFormat = "raw"
    add_special_tokens: bool = True
    max_tokens: int = Field(default=0, ge=0)
    predicate: Predicate = "gate > 0"
    components: list[Component] = ["neuron"]


class PromptInfo(_Section):
    """What the prompts' tokens are. `special_token_ids`: ids, ascending, that the tokenizer marks as special (BOS, the
    marks of a chat template), whether or not a prompt has them; words that a template writes between them are not."""

    special_token_ids: list[int]

    @field_validator("special_token_ids")
    @classmethod
    def _ascending(cls, ids: list[int]) -> list[int]:
        if ids != sorted(set(ids)) or (ids and ids[0] < 0):
            raise ValueError(f"special token ids must be distinct, ascending and at least 0; they are {ids}")
        return ids


class DatasetInfo(_Section):
    """Where the instructions came from. `sha256` is over their canonical JSON lines."""

    name: str = ""
    sha256: str = ""


class ArchiveAttributes(_Section):
    """The whole attribute. `prompts` is null where the tokenizer does not say which tokens are special, and absent from
    archives of releases that did not ask it. `warnings`: sentences about the prompts, from the submission.

    run: the run id, 32 hexadecimal digits that no other archive has; null in archives of earlier releases.
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
    """Attributes of a root group as types.

    Raises:
        NotAnArchiveError: there is no `sparcom` attribute, or it does not have the form of version 1.
        NewerFormatError: its `format_version` is one that this release does not know.
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
            f"the attribute 'sparcom' of {where} does not have the form of format {FORMAT_VERSION}: {fields}. "
            "The archive is damaged or was written by another program"
        ) from error
