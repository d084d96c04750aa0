"""Host time of capture per decode step in vLLM's process, without a device: how long it holds the interpreter lock.

The real step, transfer queue, session, and writer run against streams on the host. Rows are one byte per layer, so
copies and checksums vanish and what is left is Python. Chunks have 128 rows, as with LLaMA-2-7B. Each request has a
prompt of 32 tokens and a response of 192. Requests begin at different times, and new ones replace those that end. A
step begins every 10.5 ms, as on an H100 (estimate). As in an extraction, a poll per second reports the requests that
have ended.

py-spy samples the holder of the lock 1,000 times per second; lost samples count like the others. Processor time of the
threads is more: it includes waking them and system calls, which vLLM does not wait for, and in the step's thread the
streams on the host.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from workload import Workload

from sparcom_extractor.capture.ops.step_buffers import WRITE, StepBuffers, Widths
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue
from sparcom_extractor.extraction import POLL_SECONDS
from sparcom_extractor.protocol import PLAN_KEY, FinishedRequest
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import ArrayPart, ChunkTarget

GOALS = {256: 1.0, 1024: 2.5}  # ms of the interpreter lock per step, by requests
PERIOD = 0.0105  # seconds from step to step
POLL_STEPS = round(POLL_SECONDS / PERIOD)
ANY_TRACER = (0x59616D61, -1, 0, 0, 0)  # arguments of prctl: a child may look into this process
LAYERS, NEURONS = 32, 8
PROMPT, RESPONSE = 32, 192
CAPACITY = PROMPT + RESPONSE - 1  # the last token of the response is never fed


class HostStreams:
    """Streams whose work is done at once."""

    def memory(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    pinned = memory

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        target.copy_(source)
        return SimpleNamespace(synchronize=lambda: None)

    def enter_thread(self) -> None:
        """Do nothing: the host has one device."""

    def launch(self, work: Any) -> None:
        work()


class Load:
    """A decode load of `requests` at a time, over twice as many instructions."""

    def __init__(self, folder: Path, requests: int, chunk_rows: int) -> None:
        self.requests, self.count = requests, 4 * requests
        rows = requests * PROMPT
        self.buffers = StepBuffers(rows, Widths(range(LAYERS), NEURONS), torch.device("cpu"))
        self.queue = DeviceTransferQueue(HostStreams(), ring_bytes=64 << 20, pinned_bytes=256 << 20)
        self.capture = StepCapture(self.buffers, self.queue)
        (folder / "neuron/active").mkdir(parents=True)
        target = ChunkTarget(folder / "neuron/active", self.count * CAPACITY, (chunk_rows, LAYERS, 1))
        self.session = CaptureSession([ArrayPart("neuron/active", target, (LAYERS, 1))], self.count, requests=requests)
        self.capture.open("s", self.session)
        self.ids = torch.zeros(rows, dtype=torch.int32)
        self.positions = torch.zeros(rows, dtype=torch.int64)
        self.running: list[tuple[str, int]] = []  # request, position of its next token
        self.started = self.steps = 0
        self.ended: list[str] = []  # not yet reported

    def step(self) -> float:
        """Run one step; return the seconds of processor time that capture took in the step's thread."""
        finished = {name for name, position in self.running if position == CAPACITY}
        self.running = [item for item in self.running if item[0] not in finished]
        # Requests begin a few per step, so that they are at different positions, as in a server.
        new: list[Any] = []
        few = -(-self.requests // RESPONSE)
        while self.started < self.count and len(self.running) < self.requests and len(new) < few:
            new.append(self._request(self.started))
            self.running.append((new[-1].req_id, 0))
            self.started += 1
        first = np.array([position for _, position in self.running], dtype=np.int64)
        tokens = np.where(first == 0, PROMPT, 1)
        start = np.concatenate([[0], np.cumsum(tokens)])
        fed = np.repeat(first - start[:-1], tokens) + np.arange(start[-1])
        self.positions[: len(fed)] = torch.from_numpy(fed)
        scheduled: Any = SimpleNamespace(preempted_req_ids=None, finished_req_ids=finished, scheduled_new_reqs=new)
        names = [name for name, _ in self.running]
        batch = BatchRows(names, start, first, self.ids[: len(fed)], self.positions[: len(fed)])
        began = time.thread_time()
        if self.steps % POLL_STEPS == 0:
            self.capture.finish_requests("s", [self._finished(name) for name in self.ended])
            reply = self.capture.poll("s")
            assert reply.error is None, reply.error
            self.ended.clear()
        self.capture.before_step(scheduled)
        self.buffers.write_counters += WRITE + len(fed)
        self.capture.after_step(batch)
        seconds = time.thread_time() - began
        self.steps += 1
        self.ended += finished
        self.running = [(name, int(at + n)) for (name, _), at, n in zip(self.running, first, tokens, strict=True)]
        return seconds

    def _request(self, index: int) -> Any:
        plan = {"session": "s", "index": index, "row": index * CAPACITY, "begin": 0, "end": CAPACITY}
        plan |= {"length_unknown": True, "prompt": PROMPT}
        return SimpleNamespace(req_id=f"r{index}", sampling_params=SimpleNamespace(extra_args={PLAN_KEY: plan}))

    def _finished(self, name: str) -> FinishedRequest:
        index = int(name[1:])
        return FinishedRequest(index, index * CAPACITY, CAPACITY, CAPACITY)


async def measure_host(workload: Workload) -> dict[str, Any]:
    """Measure 256 and 1,024 requests at a time; medians of the rounds."""
    results: dict[str, Any] = {}
    for requests, goal in GOALS.items():
        rounds = [measure(requests) for _ in range(workload.rounds)]
        for name in rounds[0]:
            end = f" (goal {goal})" if name == "lock, together" else ""
            key = f"{requests:,} requests: {name}{end}"
            results[key] = statistics.median(found[name] for found in rounds)
    return results


def measure(requests: int, chunk_rows: int = 128, steps: int = 400) -> dict[str, float]:
    """Return milliseconds per step, once `requests` run, by thread: of the lock and of the processor. And the number of
    chunks read back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a device, flags are zeroed by a kernel
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        load = Load(Path(folder), requests, chunk_rows)
        while load.started < requests:
            load.step()
        time.sleep(0.5)  # so that the threads catch up
        gc.collect()
        steps = min(steps, (load.count - load.started) * RESPONSE // requests)
        with lock_samples(Path(folder) / "samples") as samples:
            before, own = _threads(), 0.0
            for _ in range(steps):
                began = time.perf_counter()
                own += load.step()
                time.sleep(max(0.0, PERIOD - (time.perf_counter() - began)))
            while load.session.queued_bytes:
                time.sleep(0.001)
            after = _threads()
        used = {"step": own} | {name: after[name] - before.get(name, 0.0) for name in after}
        read_backs = load.session.poll().read_backs
        load.session.fail("measured")
        load.capture.shutdown()
    torch.set_num_threads(threads)
    found = {f"lock, {name}": count / steps for name, count in samples.items()}
    found["lock, together"] = sum(found.values())
    found |= {f"processor, {name}": 1e3 * seconds / steps for name, seconds in used.items()}
    return found | {"processor, together": 1e3 * sum(used.values()) / steps, "chunks read back": read_backs}


@contextmanager
def lock_samples(path: Path) -> Iterator[dict[str, float]]:
    """Yield a dict that holds, after the block, the milliseconds in which each of capture's threads had the lock."""
    ctypes.CDLL(None).prctl(*ANY_TRACER)
    options = "--gil --nonblocking --threads --rate=1000 --duration=600 --format=raw"
    command = ["py-spy", "record", *options.split(), f"--output={path}", f"--pid={os.getpid()}"]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE) as process:
        time.sleep(1.5)  # it reads the symbols of this process first
        samples = dict.fromkeys(("step", "drain", "assemble", "write"), 0.0)
        yield samples
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0].decode()
    total = re.search(r"Samples: (\d+) Errors: (\d+)", said)
    if total is None:
        raise RuntimeError(f"py-spy must sample this process; it said: {said.strip()}")
    taken, lost = map(int, total.groups())
    for line in path.read_text().splitlines():
        stack, count = line.rsplit(" ", 1)
        if "sparcom-" in stack:
            name = stack.split("sparcom-")[1].split(";")[0].split("_")[0]
        elif "sparcom_extractor" in stack and "HostStreams" not in stack:
            name = "step"
        else:
            continue  # the load itself
        samples[name] += int(count) * (taken + lost) / taken


def _threads() -> dict[str, float]:
    """Return the seconds of processor time of capture's threads, those of a pool together."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.name.startswith("sparcom-"):
            name = thread.name.split("_")[0].removeprefix("sparcom-")
            seconds = int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9
            found[name] = found.get(name, 0.0) + seconds
    return found
