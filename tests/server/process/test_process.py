"""The server as a process: causes and times of its end, and exit statuses."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_server.run import listen, run_server
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_models_load_ends_it(process: Start, number: signal.Signals, status: int) -> None:
    """A start that blocks forever in a thread does not keep the process; it must end within 10 s."""
    running = process(ready=False, stuck=True)
    assert running.http.get("/ready").json()["models"] == {"fake": "loading"}
    running.popen.send_signal(number)
    assert running.popen.wait(10) == status
    log = running.log.read_text()
    assert "interrupted while models were loading" in log
    assert "Traceback" not in log


def test_a_dead_engine_ends_it(process: Start) -> None:
    """The running job fails with the reason, queued jobs end, and the process exits with 1 and one sentence."""
    running = process(pause=0.05)
    batch = [{"id": f"i{n}", "text": "a b"} for n in range(1000)]
    for name in ("runs", "waits"):
        job = running.http.post("/v1/extractions", json={"archive": name, "instructions": batch}).json()
    first = running.http.get("/v1/extractions").json()["extractions"][-1]["links"]["self"]
    with running.http.stream("GET", f"{first}/events") as stream:
        running.popen.send_signal(signal.SIGUSR1)
        last = [line for line in stream.iter_lines() if line.startswith("data:")][-1]
    assert '"state":"failed"' in last
    assert "the engine was killed" in last
    assert job["state"] == "queued"
    assert running.popen.wait(20) == 1
    log = running.log.read_text()
    assert "error: the engine of model 'fake' stopped" in log
    assert "Traceback" not in log
    states = open_archive(running.data / "archives" / "runs.zarr").instructions.state.tolist()
    assert states == sorted(states, key=lambda state: state != 1), "complete instructions stay, the others are pending"


def test_a_port_in_use_is_an_error_before_a_model_loads(tmp_path: Path) -> None:
    """The error names address, reason and remedy; no model is started and no folder is created."""

    async def start() -> FakeEngine:
        pytest.fail("a model was loaded")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=rf"port {port} of 127.0.0.1: Address already in use"):
            run_server({"m": start}, ServerSettings(port=port, data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    """The error is one sentence with the remedy."""
    with pytest.raises(InvalidInputError, match="Choose another --port or --host"):
        listen(host, 0)


def test_the_listener_has_tcp_nodelay() -> None:
    """Without TCP_NODELAY, each response waits 40 ms for the acknowledgement of its headers."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
