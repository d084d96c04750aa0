"""Protocols for the parts of an engine that the service calls; `sparcom_extractor.engine.CaptureEngine` fits them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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

    @property
    def prompts_sha256(self) -> str:
        """SHA-256 over the token ids of all prompts. Archives with the same one are aligned."""

    @property
    def in_flight(self) -> frozenset[int]:
        """Indices that the engine has not finished; valid after `run` raised EngineError."""

    @property
    def suspended(self) -> bool:
        """Whether `run` returned early because of `suspend`."""

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Run until every instruction is complete, failed or cancelled; after `cancel` or `suspend` it returns soon.

        Calls `report` on the event loop with every new snapshot.
        Raises:
            StorageError, EngineError: the job as a whole failed; complete instructions stay complete. StorageError also
                if the archive was removed or replaced; nothing is written to its replacement.
        """

    def cancel(self) -> None:
        """Request an early end; valid at any time, also before `run`. Instructions that did not run are cancelled."""

    def suspend(self) -> None:
        """Request an early end; valid at any time, also before `run`. The archive stays open and can be resumed."""


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
        self,
        instructions: Sequence[Instruction],
        options: ExtractionOptions,
        path: Path,
        dataset_name: str = "",
        *,
        resume: bool = False,
        run: str | None = None,
        alone: Collection[int] = (),
        failures: Mapping[int, str] = {},
        shown: Callable[[str], str] = str,
    ) -> Extraction:
        """Tokenize, plan the layout and create the archive, or reopen the one at `path` if `resume`. Blocks.

        run: run id of the archive. alone: indices that run first, one at a time. failures: indices that do not run,
        with the reason. shown: changes the model's id and the warnings that the archive stores.

        Raises:
            InvalidInputError: the batch was refused, or differs from that of the archive at `path`.
            ArchiveExistsError: something is at `path`, or its archive is closed.
            StorageError: the archive cannot be created, has another run id, or another process writes it.
        """

    async def close(self) -> None:
        """Stop the engine and free its memory."""


class ModelSource(Protocol):
    """One model that the operator listed, before its engine is started."""

    async def start(self) -> ModelEngine:
        """Load the model.

        Raises:
            InvalidInputError, UnsupportedModelError: it can never be served like this.
            EngineError: the engine did not start.
        """

    def check(self, instructions: Iterable[Instruction], options: ExtractionOptions) -> Iterator[Instruction]:
        """Yield the instructions, each checked against the prompt format. Blocks.

        Raises:
            InvalidInputError: some do not fit it, or the model has no chat template; raised at the end of the batch.
        """

    def tokenize(self, instructions: Sequence[Instruction], options: ExtractionOptions) -> list[NDArray[np.int32]]:
        """Return the token ids of each prompt, without an engine. Blocks."""
