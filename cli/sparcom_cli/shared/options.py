"""Options that several commands share, and their conversion to settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from sparcom_data.schema.options import ExtractionOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

EXTRACTION_OPTIONS = ("granularity", "positions", "prompt_format", "max_tokens", "no_special_tokens")
KEY_LIMITS = ("queued_instructions", "tokens_per_day", "storage_bytes", "requests_per_minute", "event_streams")
DEFAULT_SERVER = "http://127.0.0.1:8000"
AT_LEAST_1 = click.IntRange(min=1)
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
GRANULARITY = click.Choice(["token", "count"])
PROMPT_FORMAT = click.Choice(["raw", "chat"])
POSITIONS = click.Choice(["prompt", "response", "all"])
SHARE = click.FloatRange(0, 1, min_open=True)


class Decorator(Protocol):
    """Adds an option to a command."""

    def __call__(self, command: Decorated, /) -> Decorated: ...


def option(name: str, kind: click.ParamType[Any] | type | None, default: Any, text: str, **more: Any) -> Decorator:
    """Return an option with a default, which --help shows."""
    return click.option(name, type=kind, default=default, help=text, **more)


def optional(name: str, kind: click.ParamType[Any] | None, shown: str | None, text: str, **more: Any) -> Decorator:
    """Return an option that is None unless given; --help shows `shown` as its default."""
    return click.option(name, type=kind, show_default=shown, help=text, **more)


def combined(*options: Decorator) -> Decorator:
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
server_options = combined(
    option(
        "--server",
        None,
        DEFAULT_SERVER,
        "Send requests to this server.",
        metavar="URL",
        envvar="SPARCOM_SERVER",
        show_envvar=True,
    ),
    optional("--key", None, "none", "Send this API key.", envvar="SPARCOM_API_KEY", show_envvar=True),
)
archive_key_option = optional(
    "--key",
    None,
    "none",
    "Send this API key to the servers of archives. SPARCOM_API_KEY goes only to the server in SPARCOM_SERVER.",
    envvar="SPARCOM_API_KEY",
    show_envvar=True,
)
extraction_options = combined(
    option("--granularity", GRANULARITY, "token", "Store one mask per token, or one count per neuron and instruction."),
    option("--positions", POSITIONS, "prompt", "Capture prompt tokens, response tokens or both."),
    option("--prompt-format", PROMPT_FORMAT, "raw", "Tokenize the text as it is, or apply the chat template first."),
    option(
        "--max-tokens", int, 0, "Generate this many response tokens greedily. Required for --positions response or all."
    ),
    click.option("--no-special-tokens", is_flag=True, help="Omit the tokens that the tokenizer adds, such as BOS."),
)
engine_options = combined(
    optional("--dtype", None, "float32 on CPU, auto on GPU", "Load weights as float32, bfloat16, float16 or auto."),
    optional("--revision", None, "main branch", "Load this branch, tag or commit of a Hub model."),
    optional("--quantization", None, "from the model's config.json", "Use this vLLM quantization method."),
    optional("--max-model-len", AT_LEAST_1, "the model's", "Limit prompt plus response to this many tokens."),
    optional("--max-num-batched-tokens", AT_LEAST_1, "512 on CPU, vLLM's on GPU", "Limit the tokens per step."),
    optional("--max-num-seqs", AT_LEAST_1, "64 on CPU, vLLM's on GPU", "Limit the concurrent requests."),
    optional("--gpu-memory-utilization", SHARE, "vLLM's", "Use this fraction of the GPU's memory."),
    optional("--kv-cache-gib", click.FloatRange(0, min_open=True), "2 on CPU", "Set the size of the KV cache in GiB."),
    optional("--tensor-parallel-size", AT_LEAST_1, "one", "Split every layer across this many GPUs or CPUs."),
    optional(
        "--pipeline-parallel-size", AT_LEAST_1, "one", "Split the layers into this many groups; must be 1 on CPU."
    ),
)


def limit_option(text: str) -> Decorator:
    """Return the repeatable option --limit; its value is {name: number}. text: the first sentence of its help."""
    return click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="NAME=NUMBER",
        callback=lambda _context, _parameter, values: _parse_limits(values),
        help=f"{text} NAME is one of {', '.join(KEY_LIMITS)}. Repeatable.",
    )


def _parse_limits(values: tuple[str, ...]) -> dict[str, int]:
    limits = {}
    for value in values:
        name, _, number = value.partition("=")
        name = name.replace("-", "_")
        if name not in KEY_LIMITS or not number.isdecimal():
            raise click.BadParameter(f"it must be NAME=NUMBER, with a NAME of {', '.join(KEY_LIMITS)}; it is {value!r}")
        limits[name] = int(number)
    return limits


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
