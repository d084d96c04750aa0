"""Options of an extraction that clients may set."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from sparcom_data.schema.metadata import Granularity, Positions, PromptFormat
from sparcom_data.schema.strict import NUMBER, StrictModel


class ExtractionOptions(StrictModel):
    """Options of one extraction.

    granularity: `token` stores one mask per token. `count` stores, per instruction and neuron, the number of captured
        tokens at which the neuron was active. Frequency measures need no more: megabytes instead of terabytes.
    positions: tokens to capture: of the prompt, of the generated response, or all.
    prompt_format: `raw` tokenizes the text unchanged; `chat` applies the model's chat template first.
    max_tokens: maximum number of response tokens, generated greedily (temperature 0); 0 captures the prompt only.
    add_special_tokens: whether the tokenizer adds its own (such as BOS) in raw format; a chat template brings its own.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"positions": {"const": "prompt"}, "max_tokens": {"const": 0}}},
                {
                    "required": ["positions", "max_tokens"],
                    "properties": {"positions": {"enum": ["response", "all"]}, "max_tokens": {"minimum": 1}},
                },
            ]
        }
    )

    granularity: Granularity = "token"
    positions: Positions = "prompt"
    prompt_format: PromptFormat = "raw"
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000), NUMBER] = 0
    add_special_tokens: bool = Field(default=True, strict=True)

    @model_validator(mode="after")
    def _max_tokens_fits_positions(self) -> ExtractionOptions:
        if self.positions == "prompt" and self.max_tokens:
            raise ValueError(
                f"max_tokens must be 0 if positions is 'prompt'; it is {self.max_tokens}. "
                "Choose positions 'all' or 'response' to capture generated tokens"
            )
        if self.positions != "prompt" and not self.max_tokens:
            raise ValueError(f"max_tokens must be at least 1 if positions is {self.positions!r}; it is 0")
        return self
