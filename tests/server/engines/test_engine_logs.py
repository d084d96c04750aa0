"""`sparcom serve` with a real engine: logs are JSON throughout, and vLLM's metrics are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.engine
@pytest.mark.slow
def test_vllm_is_watched_too(serve: Callable[..., Any], tmp_path: Path) -> None:
    """vLLM's records, also those of its own processes, are JSON; its metrics count the job's requests."""
    from sparcom_models import make_tiny_model

    make_tiny_model("llama", tmp_path / "tiny", tokenizer=ROOT / "models" / "smollm2-135m-instruct")
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    running = serve({"tiny": tmp_path / "tiny"}, "--log-format", "json", environment=environment)
    batch = [{"id": str(number), "text": "One two three."} for number in range(3)]
    job = running.http.post("/v1/extractions", json={"instructions": batch}).json()
    running.wait_for(lambda: running.http.get(f"/v1/extractions/{job['id']}").json()["finished"])
    metrics = running.http.get("/metrics").text
    running.popen.terminate()
    running.popen.wait()
    # A program that vLLM runs to inspect models cannot be configured; below ERROR it warns about Triton.
    text = [line for line in running.log.read_text().splitlines() if not line.startswith("Triton is installed")]
    lines = [json.loads(line) for line in text]
    vllm = [line for line in lines if line["logger"].startswith("vllm.")]
    assert len({line.get("vllm_process_name") for line in vllm} - {None}) > 1, vllm
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name=' in metrics
    assert 'sparcom_instructions_total{outcome="complete"} 3.0' in metrics
    assert "sparcom_written_bytes_total 0.0" not in metrics
