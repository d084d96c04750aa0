"""A fake engine whose masks and counts go through the extractor's real writer, so that its disk can fail."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fake_engine import LAYERS, NEURONS, FakeEngine, FakeExtraction
from sparcom_data.archive import Archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import create_archive
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.resume import reopen_archive
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.writer.rows import RANGES, StepRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.settled import read_settled
from sparcom_extractor.writer.targets import archive_parts

IN_FLIGHT = 4  # instructions between two commits


def masks_of(model: str, text: str, rows: int) -> NDArray[np.uint8]:
    """Return the masks of an instruction, uint8 (rows, layer, neuron_byte): others for each model and each text."""
    rng = np.random.default_rng(zlib.crc32(f"{model}/{text}".encode()))
    return np.packbits(rng.random((rows, LAYERS, NEURONS)) < 0.4, axis=-1, bitorder="little")


def assert_rows(archive: Archive, model: str) -> int:
    """Check each complete instruction against what its model gives for its text; return their number."""
    table, texts = archive.instructions, archive.strings("text")
    for index in table.complete.tolist():
        length, start = int(table.token_length[index]), int(table.token_start[index])
        masks = masks_of(model, texts[index], length)
        assert length == len(texts[index].split())
        if archive.granularity == "token":
            np.testing.assert_array_equal(archive.read_active(start, start + length), masks)
        else:
            bits = np.unpackbits(masks, axis=-1, bitorder="little", count=NEURONS)
            np.testing.assert_array_equal(archive.read_counts(index, index + 1)[0], bits.sum(axis=0))
    return len(table.complete)


@dataclass(slots=True)
class WritingExtraction(FakeExtraction):
    """Sends rows through a real session, a few instructions at a time, and commits those that are durable."""

    texts: Sequence[str] = ()

    async def _run(self, report: Callable[[Progress], None]) -> Progress:
        committer = await asyncio.to_thread(ArchiveCommitter, self.archive)
        parts, count = await asyncio.to_thread(archive_parts, self.archive.path, run=self.archive.run)
        session = CaptureSession(parts, count, requests=4, threads=2, settled=read_settled(parts))
        try:
            while self.todo and not self._cancelled.is_set():
                await self._pause()
                self._feed(session)
                await self._commit_durable(session, committer, report)
            session.end_input()
            is_drained = False
            while not is_drained:
                await asyncio.sleep(0.002)
                is_drained = await self._commit_durable(session, committer, report)
        finally:
            await asyncio.to_thread(session.close)
        if not self.suspended:
            await asyncio.to_thread(committer.cancel, self.todo)
            await asyncio.to_thread(committer.close)
            self.progress = self._counted(cancelled=len(self.todo))
        return self.progress

    def _feed(self, session: CaptureSession) -> None:
        for index in [self.todo.pop(0) for _ in self.todo[:IN_FLIGHT]]:
            self.engine.committed.append(index)
            rows, first = int(self.layout.capacity[index]), int(self.layout.token_start[index])
            ranges = np.array([(index, first, rows, 0, rows, 0, rows)], dtype=RANGES)
            arrays = {"neuron/active": masks_of(self.engine.name, self.texts[index], rows)}
            ids = np.arange(rows, dtype=np.int32)
            session.append_rows(StepRows(ranges, arrays, ids, np.arange(rows)))
            session.finish_requests([FinishedRequest(index, first, rows, rows)])

    async def _commit_durable(
        self, session: CaptureSession, committer: ArchiveCommitter, report: Callable[[Progress], None]
    ) -> bool:
        reply = session.poll()
        done = [
            CompletedInstruction(
                item.index,
                int(self.layout.token_start[item.index]),
                np.frombuffer(item.ids, np.int32),
                np.frombuffer(item.positions, np.int32),
            )
            for item in reply.completed
        ]
        await asyncio.to_thread(committer.complete, done)
        self.progress = self._counted(complete=len(done), tokens_done=sum(len(item.ids) for item in done))
        report(self.progress)
        if reply.error:
            raise reply.error.exception()
        return reply.drained

    def _counted(self, **counts: int) -> Progress:
        return replace(self.progress, **{name: getattr(self.progress, name) + count for name, count in counts.items()})


@dataclass(slots=True)
class WritingEngine(FakeEngine):
    """Creates empty archives with chunks of a few instructions; see `FakeEngine` for the settings."""

    def prepare(
        self,
        instructions: Sequence[Instruction],
        options: ExtractionOptions,
        path: Path,
        dataset_name: str = "",
        *,
        resume: bool = False,
        run: str | None = None,
        **_: Any,
    ) -> WritingExtraction:
        """Create the archive, or reopen it under its lock, as the real engine does."""
        attributes, columns, layout = self.plan(instructions, options, dataset_name, run)
        complete, todo = 0, list(range(len(instructions)))
        if resume:
            archive, table = reopen_archive(path, attributes, columns, layout, run)
            done = set(table.complete.tolist())
            complete, todo = len(done), [index for index in todo if index not in done]
        else:
            archive = create_archive(path, attributes, columns, layout, chunk_tokens=16, chunk_instructions=4)
        progress = Progress(len(instructions), complete=complete, tokens=layout.tokens)
        return WritingExtraction(self, archive, layout, progress, todo, texts=columns.text)
