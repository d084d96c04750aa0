"""The server is killed at random moments of its jobs, and started again. Engines are fake; their archives are real."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparcom_data.archive import open_archive
from sparcom_data.storage import PARTIAL_NAME

COUNT = 120


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_lose_and_double_nothing(process: Callable[..., Any], kills: int) -> None:
    """After each SIGKILL the jobs continue. At the end they and their archives are as if nothing had happened."""
    rng = np.random.default_rng(kills)
    batch = [{"id": f"i{n}", "text": " ".join(["a"] * (1 + n % 5))} for n in range(COUNT)]
    running = process(pause=0.02)
    jobs = {
        granularity: running.http.post(
            "/v1/extractions",
            json={"archive": granularity, "instructions": batch, "options": {"granularity": granularity}},
        ).json()
        for granularity in ("token", "count")
    }
    for _ in range(kills):
        time.sleep(rng.uniform(0, 0.3))
        running.popen.kill()
        running.popen.wait()
        running = process(ready=rng.random() < 0.7, pause=0.02)
    for name, job in jobs.items():
        address = f"/v1/extractions/{job['id']}"
        running.wait_for(lambda address=address: running.http.get(address).json()["finished"])
        ended = running.http.get(address).json()
        assert (ended["state"], ended["progress"]["complete"], ended["error"]) == ("complete", COUNT, None)
        archive = open_archive(running.data / "archives" / f"{name}.zarr")
        assert archive.attributes.run == job["run"]
        assert archive.attributes.state == "complete"
        assert archive.instructions.id == [item["id"] for item in batch]
        assert archive.instructions.state.tolist() == [1] * COUNT
        assert archive.instructions.token_length.tolist() == [1 + n % 5 for n in range(COUNT)]
        if name == "token":
            rows = np.concatenate([np.arange(1 + n % 5) for n in range(COUNT)])
            np.testing.assert_array_equal(archive.read_tokens(0, archive.tokens), [rows, rows])
    assert not [path for path in running.data.rglob("*") if PARTIAL_NAME.fullmatch(path.name)]
