"""Types of request bodies.

Unknown fields of a request are refused, never ignored: an extraction must not run without a misspelled option.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from sparcom_data.instructions import UNICODE, Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.schema.strict import NUMBER, StrictModel, one_of

ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
OWNER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
TUNED_SUFFIX = "-tuned"  # of the second archive of a job with a tuned model
MAX_METADATA = 16
HOUR, MONTH = 3600, 30 * 24 * 3600

Role = Literal["user", "admin"]


def check_archive_name(name: str) -> str:
    """Return the name if it is valid.

    Raises:
        ValueError: it holds a path, other characters or the suffix.
    """
    if not ARCHIVE_NAME.fullmatch(name):
        raise ValueError(
            "an archive's name must have 1 to 128 of the characters A-Z a-z 0-9 . _ - and start with a letter or "
            f"digit; a path is not allowed. It is {name[:140]!r}"
        )
    if name.endswith(".zarr"):
        raise ValueError(f"an archive's name must not end in .zarr, which is added; give {name[:-5]!r}")
    return name


def _check_owner_name(name: str) -> str:
    if not OWNER_NAME.fullmatch(name):
        raise ValueError(
            "a key's name must have 1 to 32 of the characters a-z 0-9 - and start with a letter or digit; it is "
            f"{name[:40]!r}"
        )
    return name


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > MAX_METADATA:
        raise ValueError(f"metadata may have at most {MAX_METADATA} keys; it has {len(metadata)}")
    return metadata


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), UNICODE]
MetadataValue = Annotated[str, StringConstraints(max_length=512), UNICODE]
ArchiveName = Annotated[
    str,
    AfterValidator(check_archive_name),
    Field(json_schema_extra={"pattern": f"^{ARCHIVE_NAME.pattern}$", "not": {"pattern": r"\.zarr$"}}),
]
Count = Annotated[int, Field(ge=0), NUMBER]


class DatasetRequest(StrictModel):
    """Data set of the instructions."""

    name: Annotated[str, Field(max_length=512), UNICODE] = ""


class Expiry(StrictModel):
    """When the outputs of a job, or an uploaded file, are deleted: `seconds` after the anchor."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=HOUR, le=MONTH), NUMBER] = Field(description="1 hour to 30 days.")


class UploadFields(StrictModel):
    """Facts of an uploaded file: query parameters, or fields of a form. Names are those of OpenAI's Files API."""

    filename: Annotated[str, Field(min_length=1, max_length=255), UNICODE] = Field(
        default="instructions.jsonl", description="Name to show in lists."
    )
    purpose: Literal["batch"] = "batch"
    anchor: Literal["created_at"] = Field(default="created_at", alias="expires_after[anchor]")
    seconds: int | None = Field(
        default=None,
        alias="expires_after[seconds]",
        ge=HOUR,
        le=MONTH,
        description="Delete the file this long after the upload: 1 hour to 30 days.",
    )


class ExtractionHead(StrictModel):
    """Fields of a request without its instructions."""

    model: str | None = Field(default=None, description="Name of a served model; required if several are served.")
    tuned: str | None = Field(
        default=None,
        description="Name of a fine-tuned model: it runs after `model` on the same tokens, into a second archive with "
        f"the suffix {TUNED_SUFFIX}.",
    )
    archive: ArchiveName | None = Field(
        default=None, description="Name of the archive, without .zarr; by default derived from model and time."
    )
    options: ExtractionOptions = ExtractionOptions()
    dataset: DatasetRequest = DatasetRequest()
    analysis: bool = Field(default=False, strict=True, description="Analyze the archives once they are complete.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], AfterValidator(_check_metadata)] = Field(
        default={},
        description="Up to 16 keys for your own use; jobs can be listed by them.",
        json_schema_extra={"maxProperties": MAX_METADATA},
    )
    output_expires_after: Expiry | None = Field(
        default=None, description="Delete job and archives this long after the submission, once the job has ended."
    )


class ExtractionRequest(ExtractionHead):
    """Body of `POST /v1/extractions`: exactly one of `instructions` and `input_file_id`."""

    model_config = ConfigDict(json_schema_extra=one_of("instructions", "input_file_id"))

    instructions: tuple[Instruction, ...] | None = None
    input_file_id: str | None = Field(default=None, description="Id of an uploaded file of instructions.")

    @model_validator(mode="after")
    def _one_source(self) -> ExtractionRequest:
        if (self.instructions is None) == (self.input_file_id is None):
            raise ValueError("exactly one of instructions and input_file_id must be given")
        if self.instructions is not None and not self.instructions:
            raise ValueError("the batch must not be empty; give at least one instruction")
        return self


class Limits(StrictModel):
    """Limits of one key. null: the server's default."""

    queued_instructions: Count | None = Field(default=None, description="Instructions of unfinished jobs.")
    tokens_per_day: Count | None = Field(default=None, description="Tokens captured within 24 hours.")
    storage_bytes: Count | None = Field(default=None, description="Bytes of archives and uploaded files.")
    requests_per_minute: Annotated[int, Field(ge=1), NUMBER] | None = None
    event_streams: Count | None = Field(default=None, description="Open event streams.")


class KeyRequest(StrictModel):
    """Body of `POST /v1/keys`."""

    name: Annotated[str, AfterValidator(_check_owner_name)] = Field(
        description="Who uses the key. Keys with one name see the same jobs and archives.",
        json_schema_extra={"pattern": f"^{OWNER_NAME.pattern}$"},
    )
    role: Role = "user"
    limits: Limits = Limits()
