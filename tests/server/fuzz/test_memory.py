"""The largest requests that the service accepts take less than 1 GiB of memory, from submission to results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sparcom_data.instructions import MAX_METADATA_VALUES
from sparcom_server.http.request_body import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES
from sparcom_server.settings import ServerSettings

MAX_PEAK = 2**30  # bytes above an idle server
BODY, FILE = (ServerSettings.model_fields[name].default for name in ("max_body_bytes", "max_file_bytes"))
COUNT = ServerSettings.model_fields["max_instructions"].default
EMOJI = "\U0001f600".encode()  # makes Python hold every character of its text in four bytes
JSON = {"Content-Type": "application/json"}
OPTIONS = b'{"options":{"granularity":"count"},'  # the fake engine writes counts in few files


def lines(total: int) -> list[bytes]:
    """Return the most instructions, of `total` bytes with separators."""
    head = b'{"id":"i%05d","text":"'
    text = EMOJI + b"a" * (total // COUNT - len(head % 0) - len(EMOJI) - 3)
    return [head % number + text + b'"}' for number in range(COUNT)]


def batch(items: list[bytes]) -> bytes:
    """Return a body."""
    return OPTIONS + b'"instructions":[' + b",".join(items) + b"]}"


def most_values() -> bytes:
    """Return instructions with as many strings, containers and numbers as allowed, and much text."""
    count = -(-MAX_VALUES // (MAX_METADATA_VALUES - 1000))
    strings, containers = MAX_STRINGS // count - 10, MAX_CONTAINERS // count - 10
    rest = b",".join([b"[1]"] * containers + [b"300"] * (MAX_VALUES // count - strings - 2 * containers - 50))
    items = []
    for number in range(count):
        first = number * strings
        texts = b",".join([b'"\xc3\xa9%x"' % value for value in range(first, first + strings)])
        items.append(b'{"id":"i%d","metadata":{"a":[%s,%s]},"text":"%s' % (number, texts, rest, EMOJI))
    left = BODY // count - max(map(len, items)) - 4
    return batch([item + b"a" * left + b'"}' for item in items])


class Meter:
    """Measures the memory of a process above the state at the beginning."""

    def __init__(self, running: Any, record_property: Callable[[str, object], None]) -> None:
        self._folder, self._record = Path(f"/proc/{running.popen.pid}"), record_property
        self._idle = psutil.Process(running.popen.pid).memory_info().rss

    @contextmanager
    def measure(self, name: str, limit: int = MAX_PEAK) -> Iterator[None]:
        """Record the peak during a block, and check it."""
        (self._folder / "clear_refs").write_text("5")  # the peak begins anew
        yield
        status = (self._folder / "status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 - self._idle
        self._record(f"{name}_mib", peak // 2**20)
        assert peak < limit, f"{name}: {peak:,} bytes"


def submit(running: Any, content: bytes) -> str:
    """Submit a job and return its address."""
    response = httpx.post(f"{running.url}/v1/extractions", content=content, headers=JSON, timeout=300)
    assert response.status_code == 202, response.text
    return str(response.json()["links"]["self"])


def run_some(url: str, *, cancel_at_once: bool = False) -> None:
    """Wait until a job has ended; cancel it after its first instructions, or at once."""
    deadline, cancelled = time.monotonic() + 300, False
    while not (job := httpx.get(url).json())["finished"]:
        assert time.monotonic() < deadline, job
        if not cancelled and (cancel_at_once or (job["progress"]["complete"] and job["state"] == "running")):
            httpx.delete(url)
            cancelled = True
        time.sleep(0.05)
    assert cancel_at_once or job["progress"]["complete"] + job["progress"]["failed"], job


@pytest.mark.slow
def test_the_largest_bodies_take_less_than_a_gibibyte(
    process: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    """The longest text, the most instructions and the most values, twice at once; then the jobs run."""
    running = process()
    meter = Meter(running, record_property)
    text = b'{"id":"a","text":" ' + EMOJI + b"%s" + b'"}'
    bodies = {
        "one_text": batch([text % (b"a" * (BODY - len(batch([text])) + 2))]),
        "most_instructions": batch(lines(BODY - 100)),
        "most_values": most_values(),
    }
    assert all(0.95 * BODY < len(body) <= BODY for body in bodies.values())
    for name, body in bodies.items():
        with meter.measure(f"{name}_submission"):
            url = submit(running, body)
        with meter.measure(f"{name}_run"):
            run_some(url, cancel_at_once=name == "most_instructions")  # the test of the largest file runs as many
    with meter.measure("two_at_once", 3 * MAX_PEAK // 2):  # the first job may run while the second body is validated
        threads = [threading.Thread(target=submit, args=(running, bodies["most_values"])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = httpx.get(f"{running.url}/v1/extractions").json()["data"]
    assert len(found) == len(bodies) + 2


@pytest.mark.slow
def test_the_largest_file_takes_less_than_a_gibibyte(
    process: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    """Its upload, a job of it, the run of that job, and reading what came of it."""
    running = process()
    meter = Meter(running, record_property)
    content = b"\n".join(lines(FILE - 100))
    assert 0.95 * FILE < len(content) <= FILE
    with meter.measure("upload"):
        headers = {"Content-Type": "application/jsonl"}
        file = httpx.post(f"{running.url}/v1/files", content=content, headers=headers, timeout=300).json()
    assert file["instructions"] == COUNT
    with meter.measure("file_submission"):
        url = submit(running, OPTIONS + b'"input_file_id":"%s"}' % file["id"].encode())
    with meter.measure("file_run"):
        run_some(url)
    with meter.measure("results"):
        read = [httpx.get(f"{url}/{kind}", timeout=60).text.count("\n") for kind in ("results", "errors")]
    assert sum(read) == COUNT
    with meter.measure("content"):
        assert httpx.get(f"{running.url}/v1/files/{file['id']}/content", timeout=60).content == content
