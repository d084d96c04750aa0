"""The demo's server: `sparcom serve` in a process of its own, ready when the block begins, gone when it ends."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from sparcom_cli.shared.waiting import waiting
from sparcom_data.errors import EngineError

READY_SECONDS = 300
STOP_SECONDS = 30
SMALL_CACHE = ("--kv-cache-gib", "0.5")  # holds more tokens than the demo runs at once, and loads 3 s sooner than 2 GiB


def command(*arguments: str) -> list[str]:
    """The command line of `sparcom` with these arguments, in this Python."""
    return [sys.executable, "-m", "sparcom_cli", *arguments]


@contextmanager
def serving(models: Sequence[Path], output: Path, log_name: str = "server.log") -> Iterator[str]:
    """A server of these models on a free port, ready; stopped at the end whatever happens. Its log is in `output`."""
    port = _free_port()
    named = [part for model in models for part in ("--model", str(model))]
    arguments = ["serve", *named, "--port", str(port), "--data-dir", str(output / "data"), *SMALL_CACHE]
    click.secho(f"\n$ sparcom {shlex.join(arguments)} &", bold=True)
    log = output / log_name
    with log.open("wb") as file:
        process = subprocess.Popen(command(*arguments), stdout=file, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/ready", models, process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with waiting("Stopping the server"):
                _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, models: Sequence[Path], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with waiting(f"Loading {' and '.join(model.absolute().name for model in models)}"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if _answers(url):
                return
            time.sleep(0.1)
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
