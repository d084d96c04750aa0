"""The server as a process: its response to a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from sparcom_data.archive import open_archive

HERE = Path(__file__).parents[1]  # for fake_engine.py
SCRIPT = """
import logging, sys
from pathlib import Path
from sparcom_server.run import run_server
from sparcom_server.settings import ServerSettings
from fake_engine import FakeEngine

class Loud(FakeEngine):
    async def close(self):
        print("closed", flush=True)

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
run_server({"fake": Loud(pause=0.05).source()}, ServerSettings(port=0, data_dir=Path(sys.argv[1])))
print("returned", flush=True)
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the process; return it with the address that it logs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "running on " in line:
            return process, line.split("running on ")[1].split()[0]
    raise AssertionError(f"the server did not start: {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_suspends_the_job_and_closes_the_engines(tmp_path: Path, number: signal.Signals) -> None:
    """After the signal, complete instructions stay complete and all others stay pending; exit status 0."""
    process, url = start(tmp_path)
    try:
        while httpx.get(f"{url}/ready").status_code != 200:
            time.sleep(0.02)
        batch = [{"id": f"i{n}", "text": "a b"} for n in range(200)]
        for name in ("running", "waiting"):
            assert httpx.post(f"{url}/v1/extractions", json={"archive": name, "instructions": batch}).is_success
        while not httpx.get(f"{url}/v1/extractions").json()["data"][-1]["progress"]["complete"]:
            time.sleep(0.02)
        process.send_signal(number)
        output, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log
    assert output.split() == ["closed", "returned"]
    states = open_archive(tmp_path / "archives" / "running.zarr").instructions.state.tolist()
    done = states.count(1)
    assert done > 0
    assert states == [1] * done + [0] * (200 - done)
    assert not (tmp_path / "archives" / "waiting.zarr").exists()
    assert "Traceback" not in log
