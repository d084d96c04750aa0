"""A real server in a thread, with fake engines that write real archives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from fixtures import client, database, db_url, postgres  # noqa: F401
from helpers import instructions
from sparcom_server.app import create_app
from sparcom_server.run import Server
from sparcom_server.service import Service
from sparcom_server.settings import ServerSettings


@dataclass
class Running:
    """A running server and a client for it."""

    url: str
    http: httpx.Client
    service: Service
    archives: Path
    server: Server
    thread: threading.Thread

    def post(self, count: int = 3, **fields: Any) -> httpx.Response:
        """Submit `count` small instructions."""
        body = {"instructions": instructions(count)} | fields
        return self.http.post("/v1/extractions", json=body)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the current report of one job."""
        answer: dict[str, Any] = self.http.get(f"/v1/extractions/{job_id}").json()
        return answer

    def wait(self, job_id: str, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """Return the job's report once the job has ended, or once `until` is true."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if until(job) if until else job["finished"]:
                return job
            time.sleep(0.02)
        raise AssertionError(f"not reached in 20 s: {job}")

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Return once `holds()` is true."""
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "not reached in 20 s"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and wait for it."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def files(self) -> list[str]:
        """Return the names of all entries in the folder of archives."""
        return sorted(path.name for path in self.archives.iterdir()) if self.archives.exists() else []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server with given engines; it is stopped after the test."""
    started: list[Running] = []

    def starting(*engines: FakeEngine, loading: float = 0.0, ready: bool = True, **fields: Any) -> Running:
        running = launch(engines or (FakeEngine(),), tmp_path, loading, fields)
        started.append(running)
        while ready and running.http.get("/ready").status_code != 200:
            time.sleep(0.01)
        return running

    yield starting
    for running in started:
        running.stop()
        running.http.close()


def launch(engines: tuple[FakeEngine, ...], folder: Path, loading: float, fields: dict[str, Any]) -> Running:
    """Start uvicorn in a thread on a free port."""
    fields = {"event_seconds": 0.05, "port": 0, "data_dir": folder / "data"} | fields
    settings = ServerSettings(**fields)
    app = create_app({engine.name: engine.source(loading) for engine in engines}, settings)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    return Running(url, httpx.Client(base_url=url, timeout=20), app.state.service, settings.archive_dir, server, thread)


@dataclass
class Process:
    """A server in its own process, and a client for it."""

    popen: subprocess.Popen[bytes]
    url: str
    http: httpx.Client
    log: Path
    data: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def wait_until_ready(self) -> None:
        """Return once the model is loaded."""
        self.wait_for(lambda: self.http.get("/ready").status_code == 200, 300)

    def wait_for(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Return once it holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"not reached in {seconds} s"
            time.sleep(0.02)

    def descriptors(self) -> int:
        """Return the number of files that the server has open."""
        return len(list(Path(f"/proc/{self.popen.pid}/fd").iterdir()))


Launch = Callable[..., Process]


@pytest.fixture
def launch_process(tmp_path: Path) -> Iterator[Launch]:
    """Return a function that starts a server by a command, waits until it listens, and by default until it is ready."""
    started: list[Process] = []

    def launching(command: list[str], *, ready: bool = True, environment: Mapping[str, str] | None = None) -> Process:
        log = tmp_path / "server.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        running = Process(popen, "", httpx.Client(), log, tmp_path / "data")
        started.append(running)
        running.wait_for(lambda: "running on " in log.read_text())
        running.url = log.read_text().split("running on ")[1].split()[0]
        running.http = httpx.Client(base_url=running.url, timeout=20)
        if ready:
            running.wait_until_ready()
        return running

    yield launching
    for running in started:
        running.popen.kill()
        running.popen.wait()
        running.http.close()


@pytest.fixture
def process(launch_process: Launch, tmp_path: Path) -> Launch:
    """Return a function that starts a server of a fake engine in its own process; serve_fake.py lists the options."""

    def starting(ready: bool = True, **fields: Any) -> Process:
        arguments = json.dumps({"data_dir": str(tmp_path / "data"), "port": 0} | fields)
        return launch_process([sys.executable, str(Path(__file__).with_name("serve_fake.py")), arguments], ready=ready)

    return starting


@pytest.fixture
def serve(launch_process: Launch, tmp_path: Path) -> Launch:
    """Return a function that starts `sparcom serve`, with vLLM, for these models: folders by name."""

    def serving(models: Mapping[str, Path], *options: str, **launching: Any) -> Process:
        command = [sys.executable, "-m", "sparcom_cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
        listed = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
        return launch_process([*command, *listed, "--kv-cache-gib", "0.25", *options], **launching)

    return serving


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Return an event; jobs of `FakeEngine(gate=gate)` run once it is set."""
    event = threading.Event()
    yield event
    event.set()
