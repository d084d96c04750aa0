"""Masks into an archive against the same bytes into one raw file, and against zarr-python's own writing."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.layout import choose_chunk_tokens, plan_layout
from sparcom_data.testing import random_attributes
from sparcom_extractor.writer.chunks import ChunkTarget
from sparcom_extractor.writer.session import CaptureSession, Segment, Settlement, StepRows

SHAPES = {"SmolLM2-135M": (30, 1536, 120), "LLaMA-2-7B": (32, 11008, 16)}  # layers, neurons, tokens an instruction
TOTAL_BYTES = 512 << 20
STEP_TOKENS = 512
ROUNDS = 3


async def measure_writing(_model: Path, output: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    archive, raw = output / "writing.zarr", output / "writing.raw"
    for name, (layers, neurons, length) in SHAPES.items():
        rng = np.random.default_rng(0)
        step = rng.integers(0, 256, size=(STEP_TOKENS, layers, neurons // 8), dtype=np.uint8)
        steps = max(2, TOTAL_BYTES // step.nbytes)
        ways: dict[str, Callable[[], None]] = {
            "archive": lambda step=step, steps=steps, length=length, shape=(layers, neurons): _write_archive(
                archive, step, steps, length, *shape
            ),
            "raw": lambda step=step, steps=steps: _write_raw(raw, step, steps),
            "zarr": lambda step=step, steps=steps: _write_zarr(archive, step, steps),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, work in ways.items():
                shutil.rmtree(archive, ignore_errors=True)
                raw.unlink(missing_ok=True)
                os.sync()
                started = time.perf_counter()
                work()
                seconds[way].append(time.perf_counter() - started)
        rate = {way: steps * step.nbytes / 1e6 / statistics.median(took) for way, took in seconds.items()}
        results |= {f"{name}: MB/s, {way}": value for way, value in rate.items()}
        results[f"{name}: archive / raw file"] = rate["archive"] / rate["raw"]
        results[f"{name}: archive / zarr-python"] = rate["archive"] / rate["zarr"]
    shutil.rmtree(archive, ignore_errors=True)
    raw.unlink(missing_ok=True)
    return results


def _write_archive(path: Path, step: NDArray[np.uint8], steps: int, length: int, layers: int, neurons: int) -> None:
    """The worker's own path, from a step's rows to durable chunks; instructions of `length` tokens."""
    count = steps * len(step) // length
    layout = plan_layout([length] * count, "prompt", 0)
    columns = InstructionColumns(*([""] * count for _ in range(5)))
    create_archive(path, random_attributes(layers, neurons), columns, layout)
    array = zarr.open_array(path, path="neuron/active", mode="r")
    session = CaptureSession(ChunkTarget(path / "neuron" / "active", array.shape[0], tuple(array.chunks)), count)
    rows = 0
    for _ in range(steps):
        stop = min(rows + len(step), count * length)
        session.put(StepRows(_segments(rows, stop, length), step.copy(), *_ids(len(step))))
        session.settle([Settlement(k, k * length, length, length) for k in range(rows // length, stop // length)])
        rows = stop
    session.finish()
    while not session.poll()["drained"]:
        time.sleep(0.001)
    session.close()


def _segments(start: int, stop: int, length: int) -> list[Segment]:
    """The pieces of instructions in rows [start, stop)."""
    pieces = []
    row = start
    while row < stop:
        index, offset = divmod(row, length)
        take = min(length - offset, stop - row)
        pieces.append(Segment(index, index * length, length, row - start, take, offset))
        row += take
    return pieces


def _ids(rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    return np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int64)


def _write_raw(path: Path, step: NDArray[np.uint8], steps: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(steps):
            file.write(step.data)
        os.fdatasync(file.fileno())


def _write_zarr(path: Path, step: NDArray[np.uint8], steps: int) -> None:
    """zarr-python with the same codecs and chunks, not synced."""
    rows = choose_chunk_tokens(step[0].nbytes, len(step))
    array = zarr.create_array(
        path,
        shape=(steps * len(step), *step.shape[1:]),
        dtype="uint8",
        chunks=(rows, *step.shape[1:]),
        compressors=[Crc32cCodec()],
    )
    for number in range(steps):
        array[number * len(step) : (number + 1) * len(step)] = step
