"""Ways to put the same rows on the disk, each timed from its first byte until everything is durable.

    archive   the worker's own path: CaptureSession, chunks with CRC32C, each synced and renamed
    raw       files written from start to end, each synced once at its end: through the page cache, or past it
    zarr      zarr-python with the archive's chunks and codecs, not synced

Run as a script it does one of them in a process of its own and prints {"seconds": …, "peak_mib": …}, peak resident
memory by VmHWM.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import choose_chunk_tokens, plan_layout
from sparcom_data.storage import aligned_memory
from sparcom_data.testing import random_attributes
from sparcom_extractor.extraction import POLL_SECONDS
from sparcom_extractor.writer.session import THREADS, CaptureSession, Segment, Settlement, StepRows
from sparcom_extractor.writer.targets import ArrayPart, archive_parts

SHAPES = {"SmolLM2-135M": (30, 1536, 120), "LLaMA-2-7B": (32, 11008, 16)}  # layers, neurons, tokens an instruction
STEP_TOKENS = 512

Masks = NDArray[np.uint8]


def random_step(shape: str) -> Masks:
    """Masks of one step, (token, layer, neuron_byte), in memory that may also be written past the page cache."""
    layers, neurons, _ = SHAPES[shape]
    row = (STEP_TOKENS, layers, neurons // 8)
    step = np.frombuffer(aligned_memory(int(np.prod(row))), dtype=np.uint8).reshape(row)
    np.copyto(step, np.random.default_rng(0).integers(0, 256, size=row, dtype=np.uint8))
    return step


def write_archive(folder: Path, shape: str, step: Masks, steps: int) -> float:
    """Seconds from the session's start until all of it is durable; the empty archive is made before."""
    parts, count = _empty_archive(folder / "a.zarr", shape, steps)
    length = SHAPES[shape][2]
    ids, positions = np.zeros(STEP_TOKENS, dtype=np.int32), np.zeros(STEP_TOKENS, dtype=np.int64)
    started = time.perf_counter()
    session = CaptureSession(parts, count)
    rows = completed = settled = 0
    polled = started
    for number in range(steps):
        stop = min(rows + STEP_TOKENS, count * length)
        session.put(StepRows(list(_segments(rows, stop, length)), {"neuron/active": step}, ids, positions))
        rows = stop
        if time.perf_counter() - polled >= POLL_SECONDS or number == steps - 1:  # as often as the engine does
            session.settle([Settlement(k, k * length, length, length) for k in range(settled, rows // length)])
            completed += len(session.poll()["completed"])
            settled, polled = rows // length, time.perf_counter()
    session.finish()
    while not (answer := session.poll())["drained"]:
        completed += len(answer["completed"])
        time.sleep(0.001)
    seconds = time.perf_counter() - started
    completed += len(answer["completed"]) + len(session.poll()["completed"])
    session.close()
    assert completed == count, answer
    return seconds


def _empty_archive(path: Path, shape: str, steps: int) -> tuple[list[ArrayPart], int]:
    """The masks' chunks, and how many instructions there are."""
    layers, neurons, length = SHAPES[shape]
    count = steps * STEP_TOKENS // length
    layout = plan_layout([length] * count, "prompt", 0)
    create_archive(
        path, random_attributes(layers, neurons), InstructionColumns(*([""] * count for _ in range(5))), layout
    )
    return archive_parts(path)


def _segments(start: int, stop: int, length: int) -> Iterator[Segment]:
    """The pieces of instructions in rows [start, stop)."""
    row = start
    while row < stop:
        index, offset = divmod(row, length)
        take = min(length - offset, stop - row)
        yield Segment(index, index * length, length, row - start, take, offset)
        row += take


def write_raw(folder: Path, step: Masks, steps: int, *, threads: int = 1, direct: bool = False) -> float:
    """Seconds for the same bytes in as many files as there are threads, each synced at its end."""
    share = [steps // threads + (k < steps % threads) for k in range(threads)]
    workers = [
        threading.Thread(target=_write_file, args=(folder / f"raw-{k}", step, share[k], direct)) for k in range(threads)
    ]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    assert sum((folder / f"raw-{k}").stat().st_size for k in range(threads)) == steps * step.nbytes
    return seconds


def _write_file(path: Path, step: Masks, times: int, direct: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o644)
    try:
        for _ in range(times):
            assert os.write(descriptor, step.data) == step.nbytes
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def write_zarr(folder: Path, step: Masks, steps: int) -> float:
    """Seconds of zarr-python with the archive's codecs and chunks, not synced."""
    array = zarr.create_array(
        folder / "z.zarr",
        shape=(steps * STEP_TOKENS, *step.shape[1:]),
        dtype="uint8",
        chunks=(choose_chunk_tokens(step[0].nbytes, STEP_TOKENS), *step.shape[1:]),
        compressors=[Crc32cCodec()],
    )
    started = time.perf_counter()
    for number in range(steps):
        array[number * STEP_TOKENS : (number + 1) * STEP_TOKENS] = step
    return time.perf_counter() - started


def do(way: str, folder: Path, shape: str, step: Masks, total_bytes: int) -> tuple[float, int]:
    """(seconds, bytes) of one way in a new folder, which stays: see `clear`."""
    steps = max(THREADS, total_bytes // step.nbytes)
    folder.mkdir(parents=True)
    os.sync()  # what others left to write is not this way's
    seconds = {
        "archive": lambda: write_archive(folder, shape, step, steps),
        "raw, one thread": lambda: write_raw(folder, step, steps),
        "raw, threads": lambda: write_raw(folder, step, steps, threads=THREADS),
        "raw, threads, direct": lambda: write_raw(folder, step, steps, threads=THREADS, direct=True),
        "zarr": lambda: write_zarr(folder, step, steps),
    }[way]()
    return seconds, steps * step.nbytes


def clear(folder: Path) -> None:
    """Remove what was written and wait.

    ext4 does not use an inode again for five seconds and looks at every such inode before it makes a file (perf: a
    fifth of the processor time of 360 chunks written just after 2,000 were removed).
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    time.sleep(6)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    name, where, model_shape, size = sys.argv[1:]
    took, _ = do(name, Path(where), model_shape, random_step(model_shape), int(size))
    print(json.dumps({"seconds": took, "peak_mib": _peak_mib()}))
