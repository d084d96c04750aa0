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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_models_load_ends_it(process: Start, number: signal.Signals, status: int) -> None:
    """A start that blocks forever in a thread does not keep the process; it must end within 10 s."""
    running = process(ready=False, stuck=True)
    assert running.http.get("/ready").json()["models"] == {"fake": "loading"}
    running.popen.send_signal(number)
    assert running.popen.wait(10) == status
    log = running.log.read_text()
    assert "interrupted while models were loading" in log
    assert "Traceback" not in log


def test_an_engine_that_keeps_dying_ends_it(process: Start) -> None:
    """After the limit of restarts the process exits with 1 and one sentence. Its jobs are kept, and continue later."""
    running = process(pause=0.05, max_engine_restarts=0)
    batch = [{"id": f"i{n}", "text": "a b"} for n in range(100)]
    for name in ("runs", "waits"):
        running.http.post("/v1/extractions", json={"archive": name, "instructions": batch})
    first = running.http.get("/v1/extractions").json()["data"][-1]["links"]["self"]
    running.wait_for(lambda: running.http.get(first).json()["progress"]["complete"] >= 2)
    running.popen.send_signal(signal.SIGUSR1)
    assert running.popen.wait(20) == 1
    log = running.log.read_text()
    assert "error: the engine of model 'fake' stopped" in log
    assert "Traceback" not in log
    states = open_archive(running.data / "archives" / "runs.zarr").instructions.state.tolist()
    assert states == sorted(states, key=lambda state: state != 1), "complete instructions stay, the others are pending"
    again = process()
    again.wait_for(lambda: all(job["finished"] for job in again.http.get("/v1/extractions").json()["data"]))
    jobs = again.http.get("/v1/extractions").json()["data"]
    assert [(job["archive"], job["state"], job["progress"]["complete"]) for job in jobs] == [
        ("waits", "complete", 100),
        ("runs", "complete", 100),
    ]


def test_a_port_in_use_is_an_error_before_a_model_loads(tmp_path: Path) -> None:
    """The error names address, reason and remedy; no model is started and no folder is created."""

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=rf"port {port} of 127.0.0.1: Address already in use"):
            run_server({"m": FakeEngine().source()}, ServerSettings(port=port, data_dir=tmp_path / "data"))
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
