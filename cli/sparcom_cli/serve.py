"""`sparcom serve`: convert the command line to server and engine settings, and run the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import AT_LEAST_1, FOLDER, engine_options, limit_option, option, optional

if TYPE_CHECKING:
    from sparcom_server.observe.logs import LogFormat

FREE = click.FloatRange(0)
SERVER_OPTIONS = (
    "max_loaded_models",
    "max_engine_restarts",
    "max_queued_jobs",
    "max_instructions",
    "max_connections",
    "max_event_streams",
    "allowed_hosts",
    "cors_origins",
)


@click.command()
@click.option(
    "--model", "models", multiple=True, required=True, metavar="[NAME=]PATH", help="Serve this model. Repeatable."
)
@option("--host", None, "127.0.0.1", "Listen on this address.")
@option("--port", click.IntRange(0, 65_535), 8000, "Listen on this port.")
@option("--data-dir", FOLDER, Path("sparcom-data"), "Keep archives, jobs and keys in this folder.")
@option(
    "--log-format",
    click.Choice(["text", "json"]),
    "text",
    "Log as text, or as JSON with one object per line.",
    envvar="SPARCOM_LOG_FORMAT",
)
@option("--warn-free-gib", FREE, 5.0, "Warn in the log and at /ready if the disk has less free space, in GiB.")
@option("--min-free-gib", FREE, 1.0, "Pause the running job while the disk has less free space, in GiB.")
@option("--max-loaded-models", AT_LEAST_1, 1, "Keep at most this many models in memory; others wait their turn.")
@option(
    "--max-engine-restarts",
    click.IntRange(min=0),
    5,
    "End the server after this many restarts of an engine in a row without progress.",
)
@option("--max-queued-jobs", click.IntRange(min=0), 100, "Limit the number of queued jobs.")
@option("--max-body-mib", AT_LEAST_1, 64, "Refuse request bodies larger than this, in MiB.")
@option("--max-instructions", AT_LEAST_1, 50_000, "Limit the instructions per request.")
@option("--max-connections", AT_LEAST_1, 1000, "Limit open connections; fewer if the process may open few files.")
@option("--max-event-streams", AT_LEAST_1, 100, "Limit open event streams.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    envvar="SPARCOM_ALLOWED_HOSTS",
    help="Also accept this name in the Host header; * accepts any. Repeatable. IP addresses, localhost, --host and "
    "this machine's own name are always accepted.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    envvar="SPARCOM_CORS_ORIGINS",
    help="Let pages of this origin, such as https://lab.example, read responses and send requests. Repeatable.",
)
@limit_option("Limit keys that have no such limit of their own.")
@click.option("--allow-anonymous", is_flag=True, help="Answer without API keys on an address that others can reach.")
@optional(
    "--published-address", None, "--host", "Name the address at which a container's port is published. Without API "
    "keys, it must be a loopback address.", envvar="SPARCOM_PUBLISHED_ADDRESS",
)  # fmt: skip
@engine_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    data_dir: Path,
    max_body_mib: int,
    log_format: LogFormat,
    warn_free_gib: float,
    min_free_gib: float,
    limits: dict[str, int],
    allow_anonymous: bool,
    published_address: str | None,
    **options: Any,
) -> None:
    """Serve models over REST, with a web page at /.

    Jobs survive a restart: they are kept in --data-dir and continue where they were. The server answers while the first
    model loads; /ready answers 200 once it is loaded.
    """
    server_options = {name: options.pop(name) for name in SERVER_OPTIONS}
    from sparcom_server.observe.logs import configure_logs

    configure_logs(log_format)
    from sparcom_extractor.launch.listed import ListedModel
    from sparcom_extractor.settings import EngineSettings

    sources = {
        name: ListedModel(EngineSettings(model=path, name=name, metrics=True, **options))
        for name, path in parse_models(models).items()
    }
    from pydantic import ValidationError

    from sparcom_data.errors import InvalidInputError
    from sparcom_data.instructions import describe_validation_error
    from sparcom_server.access.gate import is_loopback
    from sparcom_server.run import run_server
    from sparcom_server.schemas.requests import Limits
    from sparcom_server.settings import ServerSettings

    _require_engine()
    try:
        settings = ServerSettings(
            host=host,
            port=port,
            data_dir=data_dir,
            max_body_bytes=max_body_mib * 2**20,
            warn_free_bytes=int(warn_free_gib * 2**30),
            min_free_bytes=int(min_free_gib * 2**30),
            allow_anonymous=allow_anonymous or (published_address is not None and is_loopback(published_address)),
            key_limits=Limits(**(ServerSettings().key_limits.model_dump() | limits)),
            **server_options,
        )
    except ValidationError as error:
        raise InvalidInputError(describe_validation_error(error, "settings")) from None
    run_server(sources, settings)


def parse_models(values: tuple[str, ...]) -> dict[str, str]:
    """Return {name: path} for values `PATH`, named by its last part, or `NAME=PATH`.

    Raises:
        click.BadParameter: a name is empty or given twice.
    """
    models: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():  # a path may contain "="
            name, path = Path(value).absolute().name, value
        if not name or not path:
            raise click.BadParameter(f"--model must be PATH or NAME=PATH; got {value!r}")
        if name in models:
            raise click.BadParameter(f"model names must be unique; {name!r} is given twice. Use NAME=PATH")
        models[name] = path
    return models


def _require_engine() -> None:
    """Raise ModuleNotFoundError before anything starts if vLLM is missing; main() names the extra to install."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
