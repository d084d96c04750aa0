"""What a client may choose about one extraction."""

from __future__ import annotations

from pydantic import Field, model_validator

from sparcom_data.schema.metadata import Granularity, Positions, PromptFormat
from sparcom_data.schema.strict import StrictModel


class ExtractionOptions(StrictModel):
    """Options of one extraction.

    granularity: `token` keeps a mask a token; `count` keeps, for each neuron, at how many of an instruction's captured
        tokens it was active, which is all that the measures of frequency need and megabytes where masks are terabytes.
    positions: whose rows are captured: the prompt's tokens, the generated response's, or all.
    prompt_format: `raw` tokenises the text as it is, `chat` applies the model's chat template first.
    max_tokens: the most response tokens that are generated, greedily (temperature 0); 0 to capture only the prompt.
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
                f"max_tokens must be 0 where positions is 'prompt'; it is {self.max_tokens}. "
                "Choose positions 'all' or 'response' to capture generated tokens"
            )
        if self.positions != "prompt" and not self.max_tokens:
            raise ValueError(f"max_tokens must be at least 1 where positions is {self.positions!r}")
        return self
