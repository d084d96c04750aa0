"""`sparcom serve` with a real engine: logs are JSON throughout, and vLLM's metrics are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.engine
@pytest.mark.slow
def test_vllm_is_watched_too(tmp_path: Path) -> None:
    """vLLM's records, also those of its own processes, are JSON; its metrics count the job's requests."""
    from sparcom_models import make_tiny_model

    make_tiny_model("llama", tmp_path / "tiny", tokenizer=ROOT / "models" / "smollm2-135m-instruct")
    command = [sys.executable, "-m", "sparcom_cli", "serve", "--model", str(tmp_path / "tiny"), "--port", "0"]
    options = ["--data-dir", str(tmp_path / "data"), "--log-format", "json", "--kv-cache-gib", "0.25"]
    log = tmp_path / "log"
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, *options], stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            metrics = run_one_job(process, log)
        finally:
            process.terminate()
    # A program that vLLM runs to inspect models cannot be configured; below ERROR it warns about Triton.
    text = [line for line in log.read_text().splitlines() if not line.startswith("Triton is installed")]
    lines = [json.loads(line) for line in text]
    vllm = [line for line in lines if line["logger"].startswith("vllm.")]
    assert len({line.get("vllm_process_name") for line in vllm} - {None}) > 1, vllm
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name=' in metrics
    assert 'sparcom_instructions_total{outcome="complete"} 3.0' in metrics
    assert "sparcom_written_bytes_total 0.0" not in metrics


def run_one_job(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the server, run three instructions, and return its metrics."""
    while '"message": "running on ' not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    url = log.read_text().split("running on ")[1].split()[0]
    with httpx.Client(base_url=url, timeout=60) as http:
        while http.get("/ready").status_code != 200:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        batch = [{"id": str(number), "text": "One two three."} for number in range(3)]
        job = http.post("/v1/extractions", json={"instructions": batch}).json()
        while http.get(f"/v1/extractions/{job['id']}").json()["finished"] is None:
            time.sleep(0.1)
        return http.get("/metrics").text
