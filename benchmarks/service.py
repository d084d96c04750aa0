"""Speed of a running service under load: latency of polls, speed of the extraction, thousands of connections.

this process    starts the service and submits the measured job: without load, with load, in turn
service         `sparcom serve` with vLLM, all on one core, with at most 1,024 open files
load            this file as a program, on a core of its own; it ends when its standard input closes
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from workload import Workload

DESCRIPTORS = 1024
CLIENTS, POLL_SECONDS = 100, 1.0  # each client polls so often, or as often as the service suggests
LOADS = ("alone", "polls", "suggested")
IDLE, STREAMS = 2000, 500
PER_CATEGORY = 20
TIMEOUT = httpx.Timeout(60)


async def measure_service(workload: Workload) -> dict[str, Any]:
    """Return speeds, latencies and errors."""
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) > 1, "the load generator needs a core of its own"
    batch = [item.model_dump(exclude_defaults=True) for item in workload.instructions(PER_CATEGORY)]
    speeds: dict[str, list[float]] = {name: [] for name in LOADS}
    polls: list[dict[str, Any]] = []
    with served(workload, cores[0]) as url:
        run_job(url, batch, "warm-up")
        for number in range(workload.rounds):
            for name in (LOADS[number % 3 :] + LOADS)[:3]:
                speed, load = run_job(url, batch, f"{name}-{number}", name, cores[1])
                speeds[name].append(speed)
                polls += [load] if name == "polls" else []
        speed, sockets = run_job(url, batch, "sockets", "sockets", cores[1])
    latencies, posts = ([value for load in polls for value in load[key]] for key in ("polls", "posts"))
    ratios = {
        name: [loaded / alone for loaded, alone in zip(speeds[name], speeds["alone"], strict=True)]
        for name in LOADS[1:]
    }
    return {
        "clients": CLIENTS,
        "requests": len(latencies) + len(posts),
        "poll, ms: median": 1000 * statistics.median(latencies),
        "poll, ms: p99 (goal 100)": 1000 * statistics.quantiles(latencies, n=100)[98],
        "post, ms: p99": 1000 * statistics.quantiles(posts, n=100)[98],
        "tokens/s, alone": statistics.median(speeds["alone"]),
        **_shown("one poll per second", ratios["polls"]),
        **_shown("polls as the service suggests", ratios["suggested"]),
        f"tokens/s, with {IDLE} idle sockets and {STREAMS} streams": speed,
        "event streams that saw the end of the job": sockets["ended"],
        "event streams refused with status 503": sockets["refused"],
    }


def _shown(clients: str, ratios: list[float]) -> dict[str, Any]:
    name = f"tokens/s, {clients} / alone (goal 0.95)"
    return {f"{name}, median": statistics.median(ratios), f"{name}, all": f"{min(ratios):.3f} to {max(ratios):.3f}"}


@contextmanager
def served(workload: Workload, core: int) -> Iterator[str]:
    """Start the service on one core and return its address; stop it afterwards."""
    folder = workload.output / "service"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "sparcom_cli", "serve", "--model", f"bench={workload.model}", "--port", "0"]
    limited = f"ulimit -n {DESCRIPTORS}; exec taskset -c {core} " + '"$@"'
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["sh", "-c", limited, "sh", *command, "--data-dir", str(folder / "data")],  # noqa: S607
            stdout=log,
            stderr=log,
        )
    try:
        while "running on " not in (text := (folder / "log").read_text()):
            assert process.poll() is None, text
            time.sleep(0.1)
        url = text.split("running on ")[1].split()[0]
        while httpx.get(f"{url}/ready").status_code != 200:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield url
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)


def run_job(
    url: str, batch: list[dict[str, Any]], archive: str, load: str = "alone", core: int = 0
) -> tuple[float, dict[str, Any]]:
    """Run one job under a load; return its tokens per second, and what the load measured."""
    with httpx.Client(base_url=url, timeout=TIMEOUT) as http:
        answer = http.post("/v1/extractions", json={"archive": archive, "instructions": batch})
        assert answer.status_code == 202, answer.text
        path = f"/v1/extractions/{answer.json()['id']}"
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            if load != "alone":
                generator = stack.enter_context(_generator(url, answer.json()["id"], load, core))
            while (job := http.get(path).json())["finished"] is None:
                time.sleep(0.2)
            if load != "alone":
                found = json.loads(generator.communicate()[0])
        assert (job["state"], job["progress"]["complete"]) == ("complete", len(batch)), job
        while any(
            http.get("/v1/extractions", params={"state": state}).json()["data"] for state in ("queued", "running")
        ):
            time.sleep(0.1)
        http.delete(f"/v1/archives/{archive}").raise_for_status()
    return job["progress"]["tokens_done"] / job["progress"]["seconds"], found


@contextmanager
def _generator(url: str, job: str, load: str, core: int) -> Iterator[subprocess.Popen[str]]:
    command = ["taskset", "-c", str(core), sys.executable, __file__, load, url, job]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


async def run_polls(url: str, job: str, *, suggested: bool = False) -> dict[str, Any]:
    """Let each client post a job, and poll it and the running one in turn, until standard input closes.

    suggested: pause as long as Retry-After says, instead of `POLL_SECONDS`. Each client has a connection of its own.
    httpx takes 10 times as long per request, and would measure itself.
    """
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    latencies: dict[str, list[float]] = {"posts": [], "polls": [], "deletes": []}
    host, port = url.removeprefix("http://").split(":")

    async def client(number: int) -> None:
        pause = POLL_SECONDS
        await asyncio.sleep(random.random() * pause)  # noqa: S311
        reader, writer = await asyncio.open_connection(host, int(port))

        async def request(kind: str, method: str, path: str, body: bytes = b"") -> Any:
            nonlocal pause
            began = time.perf_counter()
            head = f"{method} /v1/extractions{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", answer)
            assert found is not None, answer
            if suggested and (seconds := re.search(rb"retry-after: (\d+)", answer)):
                pause = float(seconds[1])
            content = await reader.readexactly(int(found[1]))
            latencies[kind].append(time.perf_counter() - began)
            assert answer.startswith(b"HTTP/1.1 20"), (answer, content)
            return json.loads(content)

        batch = {"archive": f"load-{job}-{number}", "instructions": [{"id": "a", "text": "One two three."}]}
        own = (await request("posts", "POST", "", json.dumps(batch).encode()))["id"]
        while not ended.done():
            for polled in (own, job):
                await request("polls", "GET", f"/{polled}")
                await asyncio.wait({ended}, timeout=pause)
        await request("deletes", "DELETE", f"/{own}")
        writer.close()

    await asyncio.gather(*map(client, range(CLIENTS)))
    return latencies


async def run_sockets(url: str, job: str) -> dict[str, Any]:
    """Hold idle sockets and event streams until standard input closes; return how the streams ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * (IDLE + STREAMS), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    host, port = url.removeprefix("http://").split(":")
    request = f"GET /v1/extractions/{job}/events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        streams = []
        for _ in range(STREAMS):
            stream = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            stream.sendall(request)
            streams.append((stream, int(stream.recv(65_536, socket.MSG_PEEK).split()[1])))
        sys.stdin.read()
        bodies = [stream.makefile("rb").read() for stream, status in streams if status == 200]
    refused = sum(status == 503 for _, status in streams)
    return {"ended": sum(b"event: end" in body for body in bodies), "refused": refused}


if __name__ == "__main__":
    load, *arguments = sys.argv[1:]
    loads = {"polls": run_polls, "suggested": partial(run_polls, suggested=True), "sockets": run_sockets}
    print(json.dumps(asyncio.run(loads[load](*arguments))))
