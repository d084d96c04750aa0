"""Options of an extraction that clients may set."""

from __future__ import annotations

from pydantic import Field, model_validator

from sparcom_data.schema.metadata import Granularity, Positions, PromptFormat
from sparcom_data.schema.strict import StrictModel


class ExtractionOptions(StrictModel):
    """Options of one extraction.

    granularity: `token` stores one mask per token. `count` stores, per instruction and neuron, the number of captured
        tokens at which the neuron was active. Frequency measures need no more: megabytes instead of terabytes.
    positions: tokens to capture: of the prompt, of the generated response, or all.
    prompt_format: `raw` tokenizes the text unchanged; `chat` applies the model's chat template first.
    max_tokens: maximum number of response tokens, generated greedily (temperature 0); 0 captures the prompt only.
    add_special_tokens: whether the tokenizer adds its own (such as BOS) in raw format; a chat template brings its own.
    """

    granularity: Granularity = "token"
    positions: Positions = "prompt"
    prompt_format: PromptFormat = "raw"
    max_tokens: int = Field(default=0, ge=0, le=1_000_000)
    add_special_tokens: bool = True

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
