"""`sparcom serve`: from the command line's words to engine settings, and into the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import engine_options

if TYPE_CHECKING:
    from sparcom_server.protocols import EngineStarter, ModelEngine

SERVER_OPTIONS = ("max_queued_jobs", "max_instructions", "max_connections", "max_event_streams", "allowed_hosts")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def parse_models(values: tuple[str, ...]) -> dict[str, str]:
    """Model paths by name, from `PATH` (its last part is the name) or `NAME=PATH`.

    Raises:
        click.BadParameter: a name is empty or given twice.
    """
    models: dict[str, str] = {}
    for value in values:
        name, path = _split(value)
        if not name or not path:
            raise click.BadParameter(f"a model is given as PATH or NAME=PATH; it is {value!r}")
        if name in models:
            raise click.BadParameter(f"names of models must be unique; {name!r} is given twice. Use NAME=PATH")
        models[name] = path
    return models


def _split(value: str) -> tuple[str, str]:
    name, equals, path = value.partition("=")
    if not equals or Path(value).exists():  # a path may have "=" in it
        name, path = Path(value).absolute().name, value
    return name, path


def _starter(name: str, path: str, options: Mapping[str, Any]) -> EngineStarter:
    """What loads one model; its settings are checked now, before anything starts."""
    from sparcom_extractor.launch.model_files import check_model
    from sparcom_extractor.settings import EngineSettings

    settings = EngineSettings(model=path, name=name, **options)
    check_model(settings)

    async def start() -> ModelEngine:
        from sparcom_extractor.engine import CaptureEngine

        return await CaptureEngine.start(settings)

    return start


@click.command()
@click.option(
    "--model", "models", multiple=True, required=True, metavar="[NAME=]PATH", help="A model to serve; may be repeated."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("sparcom-data"),
    show_default=True,
    help="Where archives are kept.",
)
@click.option(
    "--max-queued-jobs", type=click.IntRange(min=0), default=100, show_default=True, help="Jobs that may wait."
)
@click.option(
    "--max-body-mib", type=click.IntRange(min=1), default=64, show_default=True, help="Largest request body, MiB."
)
@click.option(
    "--max-instructions",
    type=click.IntRange(min=1),
    default=200_000,
    show_default=True,
    help="Most instructions of one request.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Most connections at once; fewer where the process may open few files.",
)
@click.option(
    "--max-event-streams",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most event streams at once.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    envvar="SPARCOM_ALLOWED_HOSTS",
    help="Answer requests that reach the server by this name too; may be repeated, * allows every name. IP addresses, "
    "localhost, --host and this machine's own name are always allowed.",
)
@engine_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    data_dir: Path,
    max_body_mib: int,
    **options: Any,
) -> None:
    """Serve models over REST, with a page at /.

    The server answers at once; /ready says when the models are loaded.
    """
    named = parse_models(models)
    server_options = {name: options.pop(name) for name in SERVER_OPTIONS}
    starters = {name: _starter(name, path, options) for name, path in named.items()}
    from sparcom_server.run import run_server
    from sparcom_server.settings import ServerSettings

    _require_engine()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    settings = ServerSettings(
        host=host, port=port, data_dir=data_dir, max_body_bytes=max_body_mib * 2**20, **server_options
    )
    run_server(starters, settings)


def _require_engine() -> None:
    """Find out before anything starts whether the engine is installed; main() says what to install if not."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
