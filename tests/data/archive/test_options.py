"""Options of an extraction that clients may set."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from sparcom_data.schema.metadata import CaptureInfo, Positions
from sparcom_data.schema.options import ExtractionOptions


def test_defaults_capture_the_raw_prompt() -> None:
    """By default, one mask per token of the prompt, no chat template, and no generation."""
    assert ExtractionOptions().model_dump() == {
        "granularity": "token",
        "positions": "prompt",
        "prompt_format": "raw",
        "max_tokens": 0,
        "add_special_tokens": True,
    }


@pytest.mark.parametrize("positions", get_args(Positions))
def test_max_tokens_needs_response_positions(positions: str) -> None:
    """Tokens are generated only if they are captured; the message names field, value and remedy."""
    wrong, right = (1, 0) if positions == "prompt" else (0, 1)
    assert ExtractionOptions(positions=positions, max_tokens=right).max_tokens == right  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=f"max_tokens must be .*'{positions}'"):
        ExtractionOptions(positions=positions, max_tokens=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"position": "all"},
        {"positions": "both"},
        {"granularity": "counts"},
        {"prompt_format": "jinja"},
        {"positions": "all", "max_tokens": -1},
        {"positions": "all", "max_tokens": 1_000_001},
        {"positions": "all", "max_tokens": 1.5},
    ],
)
def test_unknown_options_and_values_are_refused(options: dict[str, Any]) -> None:
    """A misspelt option, an unknown value and a number out of range are errors that name the field."""
    field = "max_tokens" if "max_tokens" in options else next(iter(options))
    with pytest.raises(ValidationError, match=field):
        ExtractionOptions(**options)


def test_every_option_is_kept_in_the_archive() -> None:
    """The archive's `capture` stores every option under the same name."""
    options = ExtractionOptions(
        granularity="count", positions="all", prompt_format="chat", max_tokens=7, add_special_tokens=False
    )
    assert CaptureInfo(**options.model_dump()).model_dump().items() >= options.model_dump().items()
