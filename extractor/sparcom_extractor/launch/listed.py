"""A model that an operator listed: checked now, loaded later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import MAX_PROBLEMS, InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.launch.model_files import check_model, lacks_chat_template
from sparcom_extractor.prompts import NO_TEMPLATE, format_problem, prompt_token_ids
from sparcom_extractor.settings import EngineSettings

if TYPE_CHECKING:
    from sparcom_extractor.engine import CaptureEngine


class ListedModel:
    """One model of a service. Raises InvalidInputError if its settings or its folder are wrong."""

    def __init__(self, settings: EngineSettings) -> None:
        check_model(settings)
        self._settings = settings

    async def start(self) -> CaptureEngine:
        """Load the model; errors as in `CaptureEngine.start`."""
        from sparcom_extractor.engine import CaptureEngine  # imports torch, which takes seconds

        return await CaptureEngine.start(self._settings)

    def check(self, instructions: Iterable[Instruction], options: ExtractionOptions) -> Iterator[Instruction]:
        """Yield the instructions, checked against the prompt format. Raises InvalidInputError at the end of the batch
        if some do not fit it, or the model has no chat template."""
        problems: list[str] = []
        total = 0
        if options.prompt_format == "chat" and lacks_chat_template(self._settings.model):
            problems, total = [NO_TEMPLATE], 1
        for number, item in enumerate(instructions):
            if problem := format_problem(number, item, options):
                total += 1
                if len(problems) < MAX_PROBLEMS:
                    problems.append(problem)
            yield item
        if total:
            raise InvalidInputError(problems, total)

    def tokenize(self, instructions: Sequence[Instruction], options: ExtractionOptions) -> list[NDArray[np.int32]]:
        """Return the token ids, int32 (T,), of each prompt, without an engine."""
        return prompt_token_ids(self._settings.model, instructions, options, self._settings.revision)
