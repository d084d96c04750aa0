"""The demo's server: `sparcom serve` in a process of its own, stopped when the block ends."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from sparcom_cli.shared.waiting import waiting
from sparcom_data.errors import EngineError

READY_SECONDS = 300
STOP_SECONDS = 30
SMALL_CACHE = ("--kv-cache-gib", "0.5")  # holds all concurrent tokens of the demo, and loads 3 s sooner than 2 GiB


def command(*arguments: str) -> list[str]:
    """Return the command line that runs `sparcom` with these arguments in this Python."""
    return [sys.executable, "-m", "sparcom_cli", *arguments]


@contextmanager
def serving(models: Sequence[Path], output: Path, log_name: str = "server.log") -> Iterator[str]:
    """Serve models on a free port and yield the URL once they are loaded. The log is in `output`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    named = [part for model in models for part in ("--model", str(model))]
    arguments = ["serve", *named, "--port", str(port), "--data-dir", str(output / "data"), *SMALL_CACHE]
    click.secho(f"\n$ sparcom {shlex.join(arguments)} &", bold=True)
    log, url = output / log_name, f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(command(*arguments), stdout=file, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            with waiting(f"Loading {' and '.join(model.absolute().name for model in models)}"):
                _wait_until_ready(f"{url}/ready", process, log)
            yield url
        finally:
            with waiting("Stopping the server"):
                _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url):
            return
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise EngineError(f"the server ended or was not ready within {READY_SECONDS} s. The end of {log}:\n{tail}")


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
