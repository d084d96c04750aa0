"""One example per route for openapi.json: request and response. A test posts each and checks it against its schema."""

from __future__ import annotations

from typing import Any

JOB_ID, FILE_ID, KEY_ID, ARCHIVE = "4f1c0d9a2b7e6f8a91c3d5e7", "file-9a3f5c7e1b2d4f6a8c0e2f41", "5d7c8e9f", "first"
SERVER = "http://127.0.0.1:8000/v1"
TIME = "2026-01-31T12:00:00.000+00:00"
PARAMETERS = {"job_id": JOB_ID, "file_id": FILE_ID, "key_id": KEY_ID, "name": ARCHIVE}
KEYS = {"/v1/archives/{name}/zarr/{key}": "zarr.json", "/v1/extractions/{job_id}/analysis/{key}": "report.html"}

LINE = '{"custom_id": "a", "text": "The capital of France is", "category": "QA"}\n'
RESULT = (
    '{"id": "a", "custom_id": "a", "model": "smollm2", "archive": "first", "index": 0, "state": "complete", '
    '"prompt_length": 5, "token_length": 5, "row": 0, "response": "", "category": "QA"}\n'
)
ERROR = (
    '{"id": "a", "custom_id": "a", "model": "smollm2", "archive": "first", "index": 0, "state": "failed", '
    '"error": {"code": "failed", "message": "the prompt has 3,000 tokens; the model\'s context has 2,048"}}\n'
)
PROGRESS = {
    "instructions": 1,
    "complete": 1,
    "failed": 0,
    "cancelled": 0,
    "tokens": 5,
    "tokens_done": 5,
    "seconds": 0.2,
    "tokens_per_second": 25.0,
    "seconds_left": None,
    "storage_wait_seconds": 0.0,
}
PLACE = {"url": f"{SERVER}/archives/{ARCHIVE}", "zarr": f"{SERVER}/archives/{ARCHIVE}/zarr"}
PATH, RUN = f"/data/archives/{ARCHIVE}.zarr", "0d3b5f7a9c1e2d4f6b8a0c2e4f6a8b0d"
JOB: dict[str, Any] = {
    "id": JOB_ID,
    "object": "extraction",
    "state": "complete",
    "reason": None,
    "owner": None,
    "model": "smollm2",
    "tuned": None,
    "archive": ARCHIVE,
    "archive_path": PATH,
    "run": RUN,
    "options": {},
    "dataset": {"name": "capitals"},
    "analysis": False,
    "metadata": {"study": "geography"},
    "created": TIME,
    "started": TIME,
    "finished": TIME,
    "expires": None,
    "queue_position": None,
    "progress": PROGRESS,
    "archives": [
        {"model": "smollm2", "archive": ARCHIVE, "path": PATH, "run": RUN, "state": "complete", "progress": PROGRESS}
        | PLACE
    ],
    "error": None,
    "failures": [],
    "warnings": [],
    "links": {
        "self": f"{SERVER}/extractions/{JOB_ID}",
        "events": f"{SERVER}/extractions/{JOB_ID}/events",
        "results": f"{SERVER}/extractions/{JOB_ID}/results",
        "errors": f"{SERVER}/extractions/{JOB_ID}/errors",
        "archive": PLACE["url"],
        "zarr": PLACE["zarr"],
        "analysis": None,
    },
}
QUEUED = JOB | {"state": "queued", "started": None, "finished": None, "queue_position": 0}
FILE = {
    "id": FILE_ID,
    "object": "file",
    "filename": "capitals.jsonl",
    "bytes": len(LINE),
    "instructions": 1,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "owner": None,
    "created": TIME,
    "expires": None,
}
KEY: dict[str, Any] = {
    "id": KEY_ID,
    "object": "key",
    "name": "alice",
    "role": "user",
    "limits": {},
    "created": TIME,
    "revoked": None,
    "last_used": None,
}
COUNTS = {"pending": 0, "complete": 1, "failed": 0, "cancelled": 0}
ENTRY = {"name": ARCHIVE, "owner": None, "path": PATH} | PLACE
MODEL = {
    "id": "smollm2",
    "architecture": "LlamaForCausalLM",
    "dtype": "float32",
    "layers": 2,
    "layer_ids": [0, 1],
    "neurons": 1536,
    "activation": "silu",
    "tokenizer_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
ENGINE = {"vllm": "0.32.0", "torch": "2.13.0", "device": "cpu", "enforce_eager": False}


def part(entry: dict[str, Any], key: str = "id") -> dict[str, Any]:
    """Return a list with one entry."""
    return {"object": "list", "data": [entry], "first_id": entry[key], "last_id": entry[key], "has_more": False}


REQUESTS: dict[str, Any] = {
    "POST /v1/extractions": {
        "instructions": [{"id": "a", "text": "The capital of France is", "category": "QA"}],
        "archive": ARCHIVE,
        "dataset": {"name": "capitals"},
        "metadata": {"study": "geography"},
    },
    "POST /v1/files": LINE,
    "POST /v1/keys": {"name": "alice", "role": "user"},
}
RESPONSES: dict[str, Any] = {
    "POST /v1/extractions": QUEUED,
    "GET /v1/extractions": part(JOB),
    "GET /v1/extractions/{job_id}": JOB,
    "DELETE /v1/extractions/{job_id}": QUEUED | {"state": "cancelled", "finished": TIME, "queue_position": None},
    "GET /v1/extractions/{job_id}/events": f'event: end\nid: 7\ndata: {{"id": "{JOB_ID}", …}}\n\n',
    "GET /v1/extractions/{job_id}/results": RESULT,
    "GET /v1/extractions/{job_id}/errors": ERROR,
    "GET /v1/extractions/{job_id}/analysis/{key}": "<!doctype html>…",
    "POST /v1/files": FILE,
    "GET /v1/files": part(FILE),
    "GET /v1/files/{file_id}": FILE,
    "GET /v1/files/{file_id}/content": LINE,
    "GET /v1/archives": part(ENTRY | {"created": TIME, "state": "complete", "instructions": COUNTS}, "name"),
    "GET /v1/archives/{name}": ENTRY
    | {
        "state": "complete",
        "attributes": {
            "format_version": 1,
            "created": TIME,
            "model": MODEL,
            "engine": ENGINE,
            "capture": {},
            "dataset": {"name": "capitals"},
            "state": "complete",
        },
        "instructions": COUNTS,
        "categories": {"QA": 1},
        "tokens": 5,
        "bytes": 12_345,
    },
    "GET /v1/archives/{name}/zarr/{key}": '{"zarr_format": 3, "node_type": "group", …}',
    "POST /v1/keys": KEY | {"key": "sk-sparcom-…"},
    "GET /v1/keys": part(KEY),
    "DELETE /v1/keys/{key_id}": KEY | {"revoked": TIME},
    "GET /v1/models": {
        "models": [{"name": "smollm2", "state": "ready", "healthy": True, "max_prompt_tokens": 2047, "error": None}]
    },
    "GET /metrics": 'sparcom_jobs{state="running"} 1.0\n',
    "GET /health": {"status": "ok"},
    "GET /ready": {"ready": True, "models": {"smollm2": "ready"}, "problems": []},
}
PROBLEM = {
    "type": "urn:sparcom:problem:invalid-input",
    "title": "Invalid input",
    "status": 422,
    "detail": "instructions.0: text must not be empty",
    "problems": ["instructions.0: text must not be empty"],
}
