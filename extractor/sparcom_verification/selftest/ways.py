"""The ways in which the engine with capture runs a load, from nothing wanted to everything on disk.

    op alone    the captured activations are in the graph; nobody wants the rows
    to host     rows leave the device and are dropped there: they come for an archive that has ended
    in memory   an archive is written where no disk is, if the machine has such a place
    written     an archive is on disk, synced, when the clock stops: what counts
    counted     rows are added up for each instruction, and the counts are on disk

Beside the seconds of each run: what the worker says that it spent in capture's own code, waited, and sent.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import EngineError
from sparcom_data.schema import captured_arrays
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.protocol import PLAN_KEY
from sparcom_verification.selftest.engines import extract, generate
from sparcom_verification.selftest.results import Fact, Measure

if TYPE_CHECKING:
    from sparcom_data.schema.metadata import Granularity
    from sparcom_verification.selftest.speed import Load

OP_ALONE, TO_HOST, IN_MEMORY, WRITTEN, COUNTED = "op alone", "to host", "in memory", "written", "counted"
ALL = (OP_ALONE, TO_HOST, IN_MEMORY, WRITTEN, COUNTED)
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108  a file system in memory, on Linux
MEMORY_SPARE = 3  # times an archive's size that must be free there
OFTEN = (OP_ALONE, WRITTEN)  # timed in every round, the others in the first two: time is short
DRAIN_SECONDS = 0.05
Run = Callable[[], Awaitable[float]]


def memory_folder(folder: Path) -> Path:
    """Where the self-test that works in `folder` puts archives in memory; whoever runs it removes that."""
    return MEMORY_FOLDER / folder.name


class Ways:
    """The ways to run a load, each a function that returns its seconds, and what the runs said of themselves."""

    def __init__(self, engine: CaptureEngine, folder: Path, wanted: Sequence[str] = ALL) -> None:
        self._engine = engine
        self._folder = folder
        self._wanted = wanted
        self._said: defaultdict[str, list[dict[str, float]]] = defaultdict(list)

    def of(self, load: Load) -> dict[str, Run]:
        """Every way that is wanted and that this machine has, by name."""
        ways = {OP_ALONE: self._generation(load), TO_HOST: self._dropping(load)}
        if self._memory_suffices(load):
            ways[IN_MEMORY] = self._extraction(load, IN_MEMORY, memory_folder(self._folder), "token")
        ways[WRITTEN] = self._extraction(load, WRITTEN, self._folder, "token")
        ways[COUNTED] = self._extraction(load, COUNTED, self._folder, "count")
        return {name: way for name, way in ways.items() if name in self._wanted}

    def left_out(self, load: Load) -> Iterator[Fact]:
        """The ways that this machine does not have, and why."""
        if IN_MEMORY in self._wanted and not self._memory_suffices(load):
            yield Fact(f"{load.name}, {IN_MEMORY}", f"not run: {MEMORY_FOLDER} lacks the room")

    def _memory_suffices(self, load: Load) -> bool:
        row = sum(item.row_bytes for item in captured_arrays(self._engine.model, "token"))
        return MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > MEMORY_SPARE * row * load.tokens

    def _generation(self, load: Load) -> Run:
        async def run() -> float:
            return await self._watched(f"{load.name}, {OP_ALONE}", self._generate(load))

        return run

    async def _generate(self, load: Load, plans: list[dict[str, Any]] | None = None) -> float:
        return (await generate(self._engine, load.prompts, load.generated, extras=plans)).seconds

    def _dropping(self, load: Load) -> Run:
        """Rows whose session has ended are dropped where they arrive, as those past a request's end are."""

        async def run() -> float:
            session, path = f"selftest-{load.name}", self._folder / "dropped.zarr"
            prepare = self._engine.prepare
            extraction = await asyncio.to_thread(prepare, load.instructions, load.options("token"), path)
            try:
                await self._open_and_end(session, path, extraction.archive_run)
                plans = [{PLAN_KEY: plan} for plan in load.plans(session)]
                return await self._watched(f"{load.name}, {TO_HOST}", self._generate(load, plans))
            finally:
                await self._engine.call_workers("sparcom_close", session)
                await asyncio.to_thread(shutil.rmtree, path)

        return run

    async def _open_and_end(self, session: str, path: Path, run: str) -> None:
        if error := (await self._engine.call_workers("sparcom_open", session, str(path), run))[0]:
            raise EngineError(error)
        finish = True
        while not (await self._engine.call_workers("sparcom_poll", session, [], finish))[0]["drained"]:
            finish = False
            await asyncio.sleep(DRAIN_SECONDS)

    def _extraction(self, load: Load, way: str, folder: Path, granularity: Granularity) -> Run:
        name, path = f"{load.name}, {way}", folder / "speed.zarr"

        async def extraction() -> float:
            _, seconds = await extract(self._engine, load.instructions, path, load.options(granularity))
            return seconds

        async def run() -> float:
            try:
                seconds = await self._watched(name, extraction())
                self._said[name][-1]["archive"] = float(_size(path))
            finally:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            return seconds

        return run

    async def _watched(self, name: str, work: Awaitable[float]) -> float:
        """Run, and keep by how much the worker's own statistics moved."""
        before = (await self._engine.call_workers("sparcom_statistics"))[0]
        seconds = await work
        after = (await self._engine.call_workers("sparcom_statistics"))[0]
        self._said[name].append({key: after[key] - before[key] for key in after} | {"seconds": seconds})
        return seconds

    def rows(self) -> Iterator[Measure]:
        """Of every way: host seconds a step in capture's code, seconds waited, bytes sent and stored; medians."""
        for name, said in self._said.items():
            middle = {key: median(one[key] for one in said) for key in said[-1]}
            steps = max(1.0, middle["steps"])
            yield Measure(f"{name}, capture's own code on the host", middle["own_seconds"] / steps * 1e6, "µs a step")
            yield Measure(f"{name}, of the seconds", middle["own_seconds"] / middle["seconds"], "")
            if "waited_seconds" in middle:
                yield Measure(f"{name}, steps waited for room", middle["waited_seconds"], "s")
            if "sent_bytes" in middle:
                yield Measure(f"{name}, off the device", middle["sent_bytes"] / 1e6, "MB")
            if "archive" in middle:
                yield Measure(f"{name}, archive", middle["archive"] / 1e6, "MB")
                yield Measure(f"{name}, archive a second", middle["archive"] / middle["seconds"] / 1e6, "MB/s")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
