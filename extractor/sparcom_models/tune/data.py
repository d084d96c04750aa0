"""Instructions as a model is trained on them: token ids, which tokens count, what is cut, what is held out.

1. Prompts are made as in an extraction (`sparcom_extractor.prompts`), so that a twin learns what it later reads.
2. Where a conversation ends with the assistant, only the assistant's tokens count (`tune_chat`). 3. What is longer than
the limit is cut; what then has no token to predict is left out. 4. A share drawn by the seed is held out.
Knows tokenizers, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.prompts import make_prompts
from sparcom_models.tune.chat import IGNORED, assistant_only, ends_with_assistant

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_models.tune.settings import TuneSettings

_ANY_LENGTH = 2**31


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction. ids: (T,) token ids. labels: (T,) the same ids, IGNORED where a token does not count."""

    id: str
    ids: list[int]
    labels: list[int]

    @property
    def predicted(self) -> int:
        """Tokens whose loss counts; the first of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def row(self) -> dict[str, list[int]]:
        """As the Trainer takes it."""
        return {"input_ids": self.ids, "labels": self.labels}

    def cut(self, length: int) -> Example:
        return Example(self.id, self.ids[:length], self.labels[:length])


@dataclass(frozen=True, slots=True)
class TuneData:
    """What is trained on and what is held out; how many were cut, and how many had nothing left to predict."""

    training: list[Example]
    held_out: list[Example]
    cut: int
    left_out: int

    @property
    def sample(self) -> list[Example]:
        """Training instructions whose loss is taken before and after: as many as are held out, evenly spread."""
        count = min(len(self.held_out), len(self.training))
        return [self.training[number * len(self.training) // count] for number in range(count)]


def make_examples(tokenizer: Any, instructions: Sequence[Instruction], settings: TuneSettings) -> list[Example]:
    """Tokenise all instructions, in their order.

    Raises:
        InvalidInputError: naming every instruction that does not go with the prompt format or the tokenizer.
    """
    chat = settings.prompt_format == "chat"
    answered = [item for item in instructions if chat and ends_with_assistant(item)]
    found = {item.id: Example(item.id, *assistant_only(tokenizer, item)) for item in answered}
    others = [item for item in instructions if item.id not in found]
    prompts = make_prompts(tokenizer, others, ExtractionOptions(prompt_format=settings.prompt_format), _ANY_LENGTH)
    problems = []
    for item, prompt in zip(others, prompts, strict=True):
        if prompt.error:
            problems.append(f"instruction {item.id!r}: {prompt.error}")
        ids = [int(token) for token in prompt.ids]
        found[item.id] = Example(item.id, ids, list(ids))
    if problems:
        raise InvalidInputError(problems)
    return [found[item.id] for item in instructions]


def split(examples: Sequence[Example], settings: TuneSettings) -> TuneData:
    """Cut to length, leave out what has nothing to predict, hold a share out.

    Raises:
        InvalidInputError: every instruction is too long, or one of the two parts would be empty.
    """
    limit = settings.max_length
    lengths = [len(example.ids) for example in examples]
    if min(lengths) > limit:
        raise InvalidInputError(
            [
                f"max_length: at least one instruction fits; all {len(examples)} are longer than {limit} tokens, the "
                f"shortest has {min(lengths)}. Give a larger --max-length or shorter instructions"
            ]
        )
    usable = [example for example in (example.cut(limit) for example in examples) if example.predicted]
    count = round(settings.held_out * len(usable))
    if not 0 < count < len(usable):
        raise InvalidInputError(
            [
                f"held_out: at least one instruction is held out and one is trained on; {settings.held_out} of "
                f"{len(usable)} usable instructions leaves {count} and {len(usable) - count}. "
                "Give another --held-out or more instructions"
            ]
        )
    order = np.random.default_rng(settings.seed).permutation(len(usable))
    chosen = set(order[:count].tolist())
    return TuneData(
        training=[example for number, example in enumerate(usable) if number not in chosen],
        held_out=[example for number, example in enumerate(usable) if number in chosen],
        cut=sum(length > limit for length in lengths),
        left_out=len(examples) - len(usable),
    )
