"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sparcom_data.schema.options import ExtractionOptions


INPUT_HELP = "File of instructions: JSON lines, a JSON array or CSV; - reads standard input."
EXTRACTION_OPTIONS = ("granularity", "positions", "prompt_format", "max_tokens", "no_special_tokens")


def extraction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is captured and how prompts are made."""
    for option in reversed(
        [
            click.option("--granularity", type=click.Choice(["token", "count"]), default="token", show_default=True,
                         help="Store one mask per token, or one count per instruction and neuron."),
            click.option("--positions", type=click.Choice(["prompt", "response", "all"]), default="prompt",
                         show_default=True, help="Tokens to capture."),
            click.option("--prompt-format", type=click.Choice(["raw", "chat"]), default="raw", show_default=True,
                         help="Tokenise the text as it is, or apply the chat template first."),
            click.option("--max-tokens", type=int, default=0, show_default=True,
                         help="Response tokens to generate, greedily (temperature 0). Needs --positions."),
            click.option("--no-special-tokens", is_flag=True, help="Leave out what the tokenizer adds (BOS)."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def make_extraction_options(
    granularity: str, positions: str, prompt_format: str, max_tokens: int, no_special_tokens: bool
) -> ExtractionOptions:
    """The options as one checked object.

    Raises:
        InvalidInputError: they contradict each other.
    """
    from pydantic import ValidationError

    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions import describe_validation_error
    from sparcom_data.schema.options import ExtractionOptions

    try:
        return ExtractionOptions.model_validate(
            {
                "granularity": granularity,
                "positions": positions,
                "prompt_format": prompt_format,
                "max_tokens": max_tokens,
                "add_special_tokens": not no_special_tokens,
            }
        )
    except ValidationError as error:
        raise InvalidInputError(describe_validation_error(error, "options")) from error


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the engine runs; what is not given is the platform's default."""
    for option in reversed(
        [
            click.option("--dtype", help="float32, bfloat16, float16 or auto; default float32 on CPU, auto on GPU."),
            click.option("--revision", help="Branch, tag or commit of a model on the hub; default its main branch."),
            click.option("--quantization", help="Name vLLM's method; default what the model's config.json says."),
            click.option(
                "--max-model-len", type=click.IntRange(min=1), help="Longest prompt plus response, in tokens."
            ),
            click.option(
                "--max-num-batched-tokens", type=click.IntRange(min=1), help="Tokens of one step; default 512 on CPU."
            ),
            click.option(
                "--max-num-seqs", type=click.IntRange(min=1), help="Requests that run at once; default 64 on CPU."
            ),
            click.option(
                "--gpu-memory-utilization",
                type=click.FloatRange(0, 1, min_open=True),
                help="Share of the GPU's memory.",
            ),
            click.option(
                "--kv-cache-gib",
                type=click.FloatRange(0, min_open=True),
                help="GiB of KV cache; default 2 on CPU.",
            ),
            click.option(
                "--tensor-parallel-size",
                type=click.IntRange(min=1),
                help="Processes that share every layer: GPUs, or cores of a CPU; default 1.",
            ),
            click.option(
                "--pipeline-parallel-size",
                type=click.IntRange(min=1),
                help="Groups of them, each with some of the layers; default 1, on a CPU no more.",
            ),
        ]
    ):
        command = option(command)
    return command
