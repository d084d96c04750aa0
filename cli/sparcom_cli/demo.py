"""`sparcom demo`: the whole way on a small real model, as a user would go it, each step a command that is shown.

model fetch ─▶ serve ─▶ submit --wait ─▶ verify ─▶ analyze ─▶ stop the server
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import click

from sparcom_data.errors import EngineError, InvalidInputError

MODEL = "smollm2-135m-instruct"
ARCHIVE = "demo"
MARKER = ".sparcom-demo"  # only a folder that an earlier demo made is emptied
READY_SECONDS = 300
STOP_SECONDS = 30


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True)
@click.option("--model", "folder", type=click.Path(path_type=Path), help="The demo model's folder, if not models/….")
@click.option("--epsilon", default="0.05", show_default=True, help="Share of neurons that are instruction-specific.")
def demo(output: Path, folder: Path | None, epsilon: str) -> None:
    """Run 120 instructions of six categories through a small real model, and draw the first figures."""
    started = time.monotonic()
    _make_room(output)
    model = folder or Path("models") / MODEL
    if folder is None:
        _sparcom("model", "fetch", MODEL, "--output", str(model))
    instructions = str(files("sparcom_data").joinpath("demo", "instructions.jsonl"))
    archive = output / "data" / "archives" / f"{ARCHIVE}.zarr"
    with _server(model, output) as url:
        _sparcom("submit", "--server", url, "--input", instructions, "--archive", ARCHIVE, "--wait")
        _sparcom("verify", str(archive), "--reference", "transformers", "--sample", "6")
        _sparcom("analyze", str(archive), "--epsilon", epsilon, "--output", str(output / "report"))
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Open {output / 'report' / 'report.html'}")


def _make_room(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InvalidInputError([f"the demo writes into a folder of its own; {output} is a file. Name another"])
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise InvalidInputError(
            [f"the demo writes into a folder of its own; {output} holds other files. Name another with --output"]
        )
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparcom_cli", *arguments]


def _sparcom(*arguments: str) -> None:
    """Show a command and run it; its failure ends the demo with its status."""
    click.secho(f"\n$ sparcom {shlex.join(arguments)}", bold=True)
    status = subprocess.run(_command(*arguments), check=False).returncode  # noqa: S603
    if status:
        raise SystemExit(status)


@contextmanager
def _server(model: Path, output: Path) -> Iterator[str]:
    """A server on a free port, ready; stopped at the end whatever happens."""
    port = _free_port()
    arguments = ["serve", "--model", str(model), "--port", str(port), "--data-dir", str(output / "data")]
    click.secho(f"\n$ sparcom {shlex.join(arguments)} &", bold=True)
    log = output / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(_command(*arguments), stdout=file, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/ready", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    from rich.console import Console

    deadline = time.monotonic() + READY_SECONDS
    with Console(stderr=True).status("Loading the model"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if _answers(url):
                return
            time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise EngineError(f"the server must be ready within {READY_SECONDS} s; it is not. The end of {log}:\n{tail}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  (an address of our own)
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
