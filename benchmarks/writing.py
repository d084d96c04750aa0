"""MB/s of masks written to an archive, and of the same bytes written to raw files, until all are durable.

archive   the worker's own path: CaptureSession, chunks with CRC32C, each synced and renamed
raw       files written sequentially through the page cache, each synced once at the end
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from workload import Workload, median_ratio

from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.storage import aligned_memory
from sparcom_data.testing import random_attributes
from sparcom_extractor.extraction import POLL_SECONDS
from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.writer.rows import RANGES, StepRows
from sparcom_extractor.writer.session import THREADS, CaptureSession
from sparcom_extractor.writer.targets import archive_parts

SHAPES = {"SmolLM2-135M": (30, 1536, 128), "LLaMA-2-7B": (32, 11008, 16)}  # layers, neurons, tokens per instruction
STEP_TOKENS = 512
TOTAL_BYTES = 1 << 30

Masks = NDArray[np.uint8]


async def measure_writing(workload: Workload) -> dict[str, Any]:
    """Compare the archive with one raw file, and with one raw file per writer thread."""
    results: dict[str, Any] = {"writer threads": THREADS}
    for shape in SHAPES:
        rates = _rates(shape, workload)
        results |= {f"{shape}: MB/s, {name}": statistics.median(values) for name, values in rates.items()}
        for name in list(rates)[1:]:
            results[f"{shape}: archive / {name} (goal 0.8)"] = median_ratio(rates["archive"], rates[name])
    return results


def _rates(shape: str, workload: Workload) -> dict[str, list[float]]:
    """Return the MB/s per method and round. Methods alternate; the first round is not counted."""
    step = _random_step(shape)
    steps = max(THREADS, TOTAL_BYTES // (4 if workload.quick else 1) // step.nbytes)
    methods: dict[str, Callable[[Path], float]] = {
        "archive": lambda folder: _write_archive(folder / "a.zarr", shape, step, steps),
        "raw file, one thread": lambda folder: _write_raw(folder, step, steps, threads=1),
        "raw files, threads": lambda folder: _write_raw(folder, step, steps, threads=THREADS),
    }
    rates: dict[str, list[float]] = {name: [] for name in methods}
    folder = workload.output / "writing"
    for number in range(workload.rounds + 1):
        _clear(folder)
        for name, write in methods.items():
            (folder / name).mkdir(parents=True)
            os.sync()  # so that no method waits for another's bytes
            seconds = write(folder / name)
            if number:
                rates[name].append(steps * step.nbytes / 1e6 / seconds)
    _clear(folder)
    return rates


def _random_step(shape: str) -> Masks:
    """Return the masks of one step, uint8 (token, layer, neuron_byte)."""
    layers, neurons, _ = SHAPES[shape]
    row = (STEP_TOKENS, layers, neurons // 8)
    step = np.frombuffer(aligned_memory(int(np.prod(row))), dtype=np.uint8).reshape(row)
    np.copyto(step, np.random.default_rng(0).integers(0, 256, size=row, dtype=np.uint8))
    return step


def _write_archive(path: Path, shape: str, step: Masks, steps: int) -> float:
    """Return the seconds from the session's start until all data is durable, without creating the archive."""
    layers, neurons, length = SHAPES[shape]
    count = steps * STEP_TOKENS // length
    columns = InstructionColumns(*([""] * count for _ in range(5)))
    create_archive(path, random_attributes(layers, neurons), columns, plan_layout([length] * count, "prompt", 0))
    parts = archive_parts(path)[0]
    ids, positions = np.zeros(STEP_TOKENS, dtype=np.int32), np.zeros(STEP_TOKENS, dtype=np.int64)
    started = polled = time.perf_counter()
    session = CaptureSession(parts, count)
    per_step = STEP_TOKENS // length
    completed = finished = 0
    for number in range(steps):
        first = number * per_step
        ranges = _ranges(first, per_step, length)
        session.append_rows(StepRows(ranges, {"neuron/active": step}, ids, positions))
        if time.perf_counter() - polled >= POLL_SECONDS or number == steps - 1:  # as often as the engine does
            stop = first + per_step
            session.finish_requests([FinishedRequest(k, k * length, length, length) for k in range(finished, stop)])
            completed += len(session.poll().completed)
            finished, polled = stop, time.perf_counter()
    session.end_input()
    while not (reply := session.poll()).drained:
        completed += len(reply.completed)
        time.sleep(0.001)
    seconds = time.perf_counter() - started
    completed += len(reply.completed) + len(session.poll().completed)
    session.close()
    assert completed == count, reply
    return seconds


def _ranges(first: int, count: int, length: int) -> NDArray[Any]:
    """Return the ranges of a step with `count` whole instructions of `length` rows, from instruction `first` on."""
    each = range(count)
    return np.array([(first + k, (first + k) * length, length, k * length, length, 0, -1) for k in each], dtype=RANGES)


def _write_raw(folder: Path, step: Masks, steps: int, *, threads: int) -> float:
    """Return the seconds to write the same bytes to one file per thread."""

    def write(path: Path, times: int) -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(times):
                assert file.write(step.data) == step.nbytes
            os.fdatasync(file.fileno())

    shares = [steps // threads + (k < steps % threads) for k in range(threads)]
    paths = [folder / f"raw-{k}" for k in range(threads)]
    workers = [threading.Thread(target=write, args=args) for args in zip(paths, shares, strict=True)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def _clear(folder: Path) -> None:
    """Delete the files and wait.

    ext4 does not reuse an inode for five seconds, and inspects every such inode before it creates a file. Measured with
    perf, this took a fifth of the processor time of 360 chunks written just after 2,000 were deleted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    time.sleep(6)
