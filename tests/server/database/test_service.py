"""The whole service works on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from helpers import instructions

Start = Callable[..., Any]


def test_a_service_runs_on_each_database(start: Start, client: Start, db_url: str) -> None:
    """Files, jobs with metadata, lists, cancellation, deletion, limits and keys work, and survive a restart."""
    running = start(database=db_url)
    ann = client(running, "ann", queued_instructions=10, tokens_per_day=1000, storage_bytes=10**9)
    lines = "\n".join(map(json.dumps, instructions(3)))
    file = ann.post("/v1/files", content=lines, headers={"Content-Type": "application/jsonl"}).json()
    body = {"input_file_id": file["id"], "archive": "a", "metadata": {"k": "v"}}
    answer = ann.post("/v1/extractions", json=body, headers={"Idempotency-Key": "1"})
    assert answer.status_code == 202, answer.text
    job = f"/v1/extractions/{answer.json()['id']}"
    running.wait_for(lambda: ann.get(job).json()["finished"])
    assert ann.get(job).json()["progress"]["complete"] == 3
    assert len(ann.get(f"{job}/results").text.splitlines()) == 3
    assert ann.post("/v1/extractions", json=body | {"archive": "b", "instructions": []}).status_code == 422
    assert ann.post("/v1/extractions", json={"instructions": instructions(11)}).status_code == 429
    assert ann.get("/v1/extractions?metadata=k:v&state=complete").json()["data"][0]["archive"] == "a"
    running.stop()
    again = start(database=db_url)
    ann = client(again, key=ann.headers["Authorization"].removeprefix("Bearer "))
    assert ann.post("/v1/extractions", json=body, headers={"Idempotency-Key": "1"}).headers["Idempotent-Replayed"]
    assert ann.get(job).json()["state"] == "complete"
    assert ann.delete("/v1/archives/a").status_code == 204
    assert ann.delete(f"/v1/files/{file['id']}").status_code == 204
    assert ann.get("/v1/archives").json()["data"] == ann.get("/v1/files").json()["data"] == []
    assert again.http.get("/v1/archives").status_code == 401
