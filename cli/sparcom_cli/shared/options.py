"""Options that several commands share, and their conversion to settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sparcom_data.schema.options import ExtractionOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

EXTRACTION_OPTIONS = ("granularity", "positions", "prompt_format", "max_tokens", "no_special_tokens")
AT_LEAST_1 = click.IntRange(min=1)
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


def combined(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Return one decorator for several; --help lists options in the order given."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


input_option = click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(allow_dash=True, path_type=Path),
    help="Read instructions from this file: JSON lines, a JSON array or CSV; - reads standard input.",
)

server_option = click.option(
    "--server", default="http://127.0.0.1:8000", metavar="URL", help="Send requests to this server."
)

extraction_options = combined(
    click.option(
        "--granularity",
        type=click.Choice(["token", "count"]),
        default="token",
        help="Store one mask per token, or one activation count per instruction and neuron.",
    ),
    click.option(
        "--positions",
        type=click.Choice(["prompt", "response", "all"]),
        default="prompt",
        help="Capture prompt tokens, response tokens or both.",
    ),
    click.option(
        "--prompt-format",
        type=click.Choice(["raw", "chat"]),
        default="raw",
        help="Tokenize the text as it is, or apply the model's chat template first.",
    ),
    click.option(
        "--max-tokens",
        type=int,
        default=0,
        help="Generate up to this many response tokens, greedily. Requires --positions response or all.",
    ),
    click.option("--no-special-tokens", is_flag=True, help="Omit the tokens that the tokenizer adds, such as BOS."),
)


def make_extraction_options(no_special_tokens: bool, **options: Any) -> ExtractionOptions:
    """Return the values of `extraction_options` as one validated object.

    Raises:
        InvalidInputError: the options contradict each other.
    """
    from pydantic import ValidationError

    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions import describe_validation_error
    from sparcom_data.schema.options import ExtractionOptions

    try:
        return ExtractionOptions.model_validate({**options, "add_special_tokens": not no_special_tokens})
    except ValidationError as error:
        raise InvalidInputError(describe_validation_error(error, "options")) from error


def engine_option(name: str, kind: click.ParamType[Any] | None, text: str, default: str) -> Any:
    """Return an option of the engine; `default` is shown, and applied by the platform's settings."""
    return click.option(name, type=kind, help=text, show_default=default)


_SHARE = click.FloatRange(0, 1, min_open=True)
engine_options = combined(
    engine_option(
        "--dtype", None, "Load weights as float32, bfloat16, float16 or auto.", "float32 on CPU, auto on GPU"
    ),
    engine_option("--revision", None, "Load this branch, tag or commit of a hub model.", "main branch"),
    engine_option("--quantization", None, "Use this vLLM quantization method.", "from the model's config.json"),
    engine_option("--max-model-len", AT_LEAST_1, "Limit prompt plus response to this many tokens.", "model's limit"),
    engine_option("--max-num-batched-tokens", AT_LEAST_1, "Limit the tokens per step.", "512 on CPU, vLLM's on GPU"),
    engine_option("--max-num-seqs", AT_LEAST_1, "Limit the concurrent requests.", "64 on CPU, vLLM's on GPU"),
    engine_option("--gpu-memory-utilization", _SHARE, "Use this fraction of the GPU's memory.", "vLLM's"),
    engine_option(
        "--kv-cache-gib", click.FloatRange(0, min_open=True), "Set the size of the KV cache in GiB.", "2 on CPU"
    ),
    engine_option(
        "--tensor-parallel-size",
        AT_LEAST_1,
        "Split every layer over this many processes (GPUs or CPU groups).",
        "one process",
    ),
    engine_option(
        "--pipeline-parallel-size", AT_LEAST_1, "Split the layers into this many groups; must be 1 on CPU.", "one group"
    ),
)


def reject_usage(*rules: tuple[object, str]) -> None:
    """Raise click.UsageError with the message of the first rule whose condition is true."""
    for condition, message in rules:
        if condition:
            raise click.UsageError(message)
