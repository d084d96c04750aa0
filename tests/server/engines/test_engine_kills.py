"""The server, its engine's core and its worker are killed at random moments of running jobs. The engine is real."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sparcom_data.archive import open_archive
from sparcom_data.errors import SparcomError
from sparcom_data.storage import PARTIAL_NAME
from sparcom_hexainst.build.synthetic import synthetic_instructions
from undisturbed import assert_like, small_chunks_environment

MODEL = Path(__file__).parents[3] / "models" / "smollm2-135m-instruct"
KILLS = int(os.environ.get("SPARCOM_KILLS", "6"))  # a multiple of 6; 30 take a quarter of an hour
PER_CATEGORY = 10 + 2 * KILLS
COUNT = 6 * PER_CATEGORY
VICTIMS = ["server", "VLLM::EngineCore", "VLLM::Worker"]
GRANULARITIES = ["token", "count"]
OPTIONS = ["--max-num-seqs", "4", "--max-num-batched-tokens", "64"]
SECONDS = 400  # for one step, on a busy machine


def kill(running: Any, victim: str) -> None:
    """Kill one process of a server. The server's end must end all others."""
    children = psutil.Process(running.popen.pid).children(recursive=True)
    engine = {process.name(): process for process in children if process.name() in VICTIMS}
    if victim == "server":
        running.popen.kill()
        running.popen.wait()
    else:
        engine[victim].kill()
    _, alive = psutil.wait_procs(children if victim == "server" else engine.values(), timeout=30)
    assert not alive, f"outlived {victim}"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600 + 100 * KILLS)
def test_kills_lose_and_double_nothing(
    serve: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """After kills at random moments, both jobs end complete, with archives like those of undisturbed jobs."""
    from sparcom_models import make_tiny_model

    make_tiny_model("llama", tmp_path / "tiny", tokenizer=MODEL)
    environment = small_chunks_environment(tmp_path)
    rng = np.random.default_rng(17)
    batch = [
        {"id": item.id, "text": f"{number} {item.text} {item.text}"}
        for number, item in enumerate(synthetic_instructions(PER_CATEGORY))
    ]

    def start() -> Any:
        return serve({"tiny": tmp_path / "tiny"}, *OPTIONS, environment=environment)

    def submit(archive: str, granularity: str) -> str:
        options = {"granularity": granularity, "positions": "all", "max_tokens": 24}
        job = {"archive": archive, "instructions": batch, "options": options}
        answer = running.http.post("/v1/extractions", json=job).raise_for_status()
        return f"/v1/extractions/{answer.json()['id']}"

    def report(address: str) -> dict[str, Any]:
        answer: dict[str, Any] = running.http.get(address).json()
        return answer

    def complete(name: str) -> int:
        try:
            return len(open_archive(running.data / "archives" / f"{name}.zarr").instructions.complete)
        except SparcomError:
            return 0

    running = start()
    for granularity in GRANULARITIES:
        job = submit(f"whole-{granularity}", granularity)
        running.wait_for(lambda job=job: report(job)["finished"], SECONDS)
    jobs = {granularity: submit(granularity, granularity) for granularity in GRANULARITIES}
    killed = []
    for granularity, job in jobs.items():
        for victim in rng.permutation(VICTIMS * (KILLS // 6)):
            before = complete(granularity)
            running.wait_for(lambda job=job, before=before: report(job)["progress"]["complete"] > before, SECONDS)
            time.sleep(rng.uniform(0, 0.7))
            assert complete(granularity) < COUNT, f"the job ended before kill {len(killed)}"
            kill(running, victim)
            killed.append(str(victim))
            if victim == "server":
                running = start()
        running.wait_for(lambda job=job: report(job)["finished"], SECONDS)
    record_property("killed", killed)
    for granularity, job in jobs.items():
        ended = report(job)
        assert (ended["state"], ended["progress"]["complete"], ended["error"]) == ("complete", COUNT, None)
        lines = running.http.get(f"{job}/results").text.splitlines()
        assert len(lines) == COUNT
        assert running.http.get(f"{job}/errors").text == ""
        archive, whole = (
            open_archive(running.data / "archives" / f"{name}.zarr") for name in (granularity, f"whole-{granularity}")
        )
        assert archive.attributes.run == ended["run"]
        assert_like(archive, whole)
    assert not [path for path in running.data.rglob("*") if PARTIAL_NAME.fullmatch(path.name)]
