"""What the service calls of an engine, and nothing more.

`sparcom_extractor.engine.CaptureEngine` satisfies these Protocols; so does the fake in `testing.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema.metadata import EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions


class Extraction(Protocol):
    """One batch of instructions, planned and with its archive created, that waits to run or runs."""

    @property
    def progress(self) -> Progress:
        """How far it is; a new snapshot replaces the old one as the work goes on."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences about prompts that run but may not be what was meant; the archive holds them too."""

    @property
    def archive_run(self) -> str:
        """The run id of its archive."""

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Run until every instruction is complete, failed or cancelled.

        `report` is called on the event loop with every new snapshot. After `cancel()` it settles the rest as cancelled
        and returns soon. One that was cancelled before it ran may be run beside another that runs.

        Raises:
            StorageError, EngineError: the job as a whole failed; what was complete stays complete. A StorageError too
                where the archive was removed or replaced; nothing is written into what took its place.
        """

    def cancel(self) -> None:
        """Ask for an early end; valid at any time, also before `run`."""


class ModelEngine(Protocol):
    """One loaded model."""

    @property
    def name(self) -> str:
        """What clients put in `model`."""

    @property
    def model(self) -> ModelInfo:
        """What is captured from."""

    @property
    def engine(self) -> EngineInfo:
        """What runs it."""

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt, in tokens, that the model's context takes."""

    @property
    def healthy(self) -> bool:
        """False once the engine has died."""

    def prepare(
        self, instructions: Sequence[Instruction], options: ExtractionOptions, path: Path, dataset_name: str = ""
    ) -> Extraction:
        """Tokenise, plan the layout and create the archive. Blocks: call it in a thread.

        Leaves nothing at `path` when it raises.

        Raises:
            InvalidInputError, ArchiveExistsError, StorageError.
        """

    async def close(self) -> None:
        """Stop the engine and free what it holds."""


EngineStarter = Callable[[], Awaitable[ModelEngine]]
"""Loads one model; awaited once, when the service starts."""
