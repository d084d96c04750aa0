"""Hostile bodies, names, headers, paths and bytes break nothing, leak nothing and leave nothing behind.

SPARCOM_CASES=10000 sends so many requests; by default a thousand. SPARCOM_SEED chooses others.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Any

import httpx
import psutil
import pytest

from helpers import instructions, tree
from hostile import Attack, Attacker

CASES, SEED = int(os.environ.get("SPARCOM_CASES", "1000")), int(os.environ.get("SPARCOM_SEED", "0"))
SECRET = b"fc2a8d0e-the-secret-beside-the-data-folder"
MAX_GROWTH = 64 * 2**20  # bytes of memory, after the first fifth of the requests
MAX_ANSWER = 2**20
STORED = re.compile(r"([a-z0-9][a-z0-9-]*~)?[A-Za-z0-9][A-Za-z0-9._-]*\.zarr")


def answer(address: tuple[str, int], attack: Attack) -> tuple[int, bytes]:
    """Send an attack, and end it if no answer comes. Return status and content of the first answer, or 0."""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            connection.sendall(attack.data)
            patience = 0.1 if attack.kind in {"broken", "chunked", "header"} else 3  # they may wait for more
            if not select.select([connection], [], [], patience)[0]:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # the server has refused it already
            pass
        response = HTTPResponse(connection, method=attack.method)
        try:
            response.begin()
            head = "".join(f"{name}: {value}" for name, value in response.getheaders()).encode("latin-1")
            return response.status, head + response.read(MAX_ANSWER)
        except (HTTPException, ConnectionError):
            return 0, b""
        finally:
            response.close()


def prepare(running: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Switch keys on, make a job, a file and an archive, and plant links; return headers and ids."""
    key = running.http.post("/v1/keys", json={"name": "own", "role": "admin"}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"instructions": instructions(3), "archive": "kept"}
    job = running.http.post("/v1/extractions", json=body, headers=headers).json()
    lines = {"Content-Type": "application/jsonl"}
    file = running.http.post("/v1/files", content=b'{"id": "a", "text": "b"}', headers=headers | lines).json()
    path = f"/v1/extractions/{job['id']}"
    running.wait_for(lambda: running.http.get(path, headers=headers).json()["finished"])
    outside, archives = running.data.parent, running.data / "archives"
    (outside / "secret.txt").write_bytes(SECRET)
    analysis = running.data / "analyses" / job["id"]
    analysis.mkdir(parents=True)
    kept = archives / "own~kept.zarr"
    for folder in (kept, analysis):
        (folder / "link").symlink_to(outside / "secret.txt")
        (folder / "linked").symlink_to(outside)
    (archives / "own~link.zarr").symlink_to(outside)
    os.mkfifo(kept / "pipe")
    return headers, {"job_id": job["id"], "file_id": file["id"]}


def outside(running: Any) -> dict[str, bytes]:
    """Return all files beside the data folder but the log."""
    found: dict[str, bytes] = {}
    for path in running.data.parent.iterdir():
        if path.name not in {"data", "server.log"}:
            found |= tree(path) if path.is_dir() else {path.name: path.read_bytes()}
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile_requests_break_nothing(
    process: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    """No answer is a server error or holds the secret; descriptors, memory and all other files stay as they were."""
    running = process(event_seconds=0.01, keep_alive_seconds=0.2, max_queued_jobs=20, body_seconds=3)
    headers, real = prepare(running)
    server, before = psutil.Process(running.popen.pid), outside(running)
    attacker, statuses, descriptors, memory = Attacker(SEED, headers, real), Counter[tuple[str, int]](), 0, 0
    for number in range(CASES):
        if number == CASES // 5:
            running.http.get("/health")
            descriptors, memory = running.descriptors(), server.memory_info().rss
        attack = attacker.attack()
        status, content = answer(running.address, attack)
        refused = status == 501 and b"Transfer-Encoding" in attack.data  # as RFC 9112 asks for
        assert status < 500 or refused, (number, attack.kind, status, content[-2000:], attack.data[:3000])
        assert SECRET not in content, (number, attack.data[:3000])
        statuses[attack.kind, status] += 1
    unfinished = f"{running.url}/v1/extractions?state=queued&state=loading&state=running&state=cancelling"
    running.wait_for(lambda: not httpx.get(unfinished, headers=headers).json()["data"])
    running.wait_for(lambda: running.descriptors() <= descriptors + 2)
    growth = server.memory_info().rss - memory
    record_property("cases", CASES)
    record_property("growth_mib", round(growth / 2**20, 1))
    record_property("statuses", str(sorted(statuses.items())))
    assert growth < MAX_GROWTH
    assert outside(running) == before
    assert "Traceback" not in running.log.read_text()
    assert {path.name for path in running.data.iterdir()} <= {
        "analyses", "archives", "files", "sparcom.db", "sparcom.db-shm", "sparcom.db-wal"
    }  # fmt: skip
    stray = [path.name for path in (running.data / "archives").iterdir() if not STORED.fullmatch(path.name)]
    assert not stray
    check_kinds(statuses)


def check_kinds(statuses: Counter[tuple[str, int]]) -> None:
    """Check that the attacks reach the service: of each kind some are refused, of bodies some are accepted."""
    kinds = {kind for kind, _ in statuses}
    assert len(kinds) == 8
    for kind in kinds:
        assert any(kind == one and 400 <= status < 500 for one, status in statuses), kind
    for kind in ("mutated body", "upload", "header", "chunked", "query"):
        assert any(kind == one and 200 <= status < 300 for one, status in statuses), (kind, statuses)
