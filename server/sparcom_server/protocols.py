"""Protocols for the parts of an engine that the service calls; `sparcom_extractor.engine.CaptureEngine` fits them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema.metadata import EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions


class Extraction(Protocol):
    """One batch of instructions with a created archive, queued or running."""

    @property
    def progress(self) -> Progress:
        """The latest snapshot."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences about prompts that run but may not be intended; the archive holds them too."""

    @property
    def archive_run(self) -> str:
        """The run id of its archive."""

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Run until every instruction is complete, failed or cancelled; after `cancel()` it returns soon.

        Calls `report` on the event loop with every new snapshot. A cancelled extraction may run beside another.

        Raises:
            StorageError, EngineError: the job as a whole failed; complete instructions stay complete. StorageError also
                if the archive was removed or replaced; nothing is written to its replacement.
        """

    def cancel(self) -> None:
        """Request an early end; valid at any time, also before `run`."""


class ModelEngine(Protocol):
    """One loaded model."""

    @property
    def name(self) -> str:
        """The name that clients put in `model`."""

    @property
    def model(self) -> ModelInfo:
        """Facts of the model."""

    @property
    def engine(self) -> EngineInfo:
        """Facts of the engine."""

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt, in tokens, that fits the model's context."""

    @property
    def healthy(self) -> bool:
        """False once the engine has died."""

    def prepare(
        self, instructions: Sequence[Instruction], options: ExtractionOptions, path: Path, dataset_name: str = ""
    ) -> Extraction:
        """Check the batch, tokenize, plan the layout and create the archive. Blocks; call it in a thread.

        Raises:
            InvalidInputError, ArchiveExistsError, StorageError: the batch was refused and nothing is left at `path`.
        """

    async def close(self) -> None:
        """Stop the engine and free its memory."""


EngineStarter = Callable[[], Awaitable[ModelEngine]]
"""Loads one model; awaited once, when the service starts."""
