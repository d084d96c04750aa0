"""Turn instructions into training examples: tokenization, loss labels, truncation and the train/test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.prompts import make_prompts
from sparcom_models.tune.settings import TuneSettings

IGNORED = -100  # label that torch's cross entropy ignores


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction. ids: (T,) token ids. labels: (T,) the same ids, or IGNORED for tokens without loss."""

    id: str
    ids: list[int]
    labels: list[int]

    @property
    def predicted(self) -> int:
        """Number of tokens with a loss; the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


# Examples of "training", "held_out" (the test split) and "training_sample": evenly spaced training examples, as many as
# the test split has.
Parts = dict[str, list[Example]]


def make_examples(tokenizer: Any, instructions: Sequence[Instruction], settings: TuneSettings) -> list[Example]:
    """Tokenize as an extraction does. If the assistant ends a conversation, only the assistant's tokens have a loss.

    Raises:
        InvalidInputError: instructions do not fit the prompt format or the tokenizer; names every one.
    """
    chat = settings.prompt_format == "chat"
    answered = {item.id for item in instructions if chat and item.messages and item.messages[-1].role == "assistant"}
    others = [item for item in instructions if item.id not in answered]
    prompts = make_prompts(tokenizer, others, ExtractionOptions(prompt_format=settings.prompt_format), limit=2**31)
    named = list(zip([item.id for item in others], prompts, strict=True))
    if problems := [f"instruction {name!r}: {prompt.error}" for name, prompt in named if prompt.error]:
        raise InvalidInputError(problems)
    examples = {name: Example(name, prompt.ids.tolist(), prompt.ids.tolist()) for name, prompt in named}
    examples |= {item.id: _assistant_only(tokenizer, item) for item in instructions if item.id in answered}
    return [examples[item.id] for item in instructions]


def _assistant_only(tokenizer: Any, instruction: Instruction) -> Example:
    """Label only the assistant's turns. Few chat templates mark them, so a turn is the difference of two renderings.

    One rendering ends with the turn; the other ends before it, with the opening of an answer.
    """
    messages, where = (
        [message.model_dump() for message in instruction.messages or ()],
        f"instruction {instruction.id!r}",
    )

    def render(count: int, *, opened: bool) -> tuple[str, list[int]]:
        try:
            text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=opened)
        except Exception as error:  # templates are third-party code and may raise anything
            raise InvalidInputError([f"{where}: its messages do not fit the model's chat template: {error}"]) from error
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]

    whole, ids = render(len(messages), opened=False)
    labels = [IGNORED] * len(ids)
    for number in (number for number, message in enumerate(messages) if message["role"] == "assistant"):
        (before, ids_before), (after, ids_after) = render(number, opened=True), render(number + 1, opened=False)
        if not (whole.startswith(after) and after.startswith(before)):
            problem = (
                f"{where}: a chat template must not change earlier messages when later ones are added; this model's "
                "does. Give conversations with one answer, or text"
            )
            raise InvalidInputError([problem])
        turn = slice(_common_length(ids, ids_before), _common_length(ids, ids_after))
        labels[turn] = ids[turn]
    return Example(instruction.id, ids, labels)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def split(examples: Sequence[Example], settings: TuneSettings) -> Parts:
    """Truncate, drop examples without a token to predict, and draw the test split by the seed.

    Raises:
        InvalidInputError: every instruction is too long, or one of the two splits would be empty.
    """
    limit, shortest = settings.max_length, min(len(example.ids) for example in examples)
    truncated = [Example(example.id, example.ids[:limit], example.labels[:limit]) for example in examples]
    usable = [example for example in truncated if example.predicted]
    count = round(settings.held_out * len(usable))
    if shortest > limit:
        problem = f"all {len(examples)} instructions are longer than {limit} tokens; the shortest has {shortest}"
        raise InvalidInputError([f"max_length: {problem}. Give a larger --max-length or shorter texts"])
    if not 0 < count < len(usable):
        problem = f"{settings.held_out} of {len(usable)} usable instructions leaves {count} and {len(usable) - count}"
        remedy = "Give another --held-out or more instructions"
        raise InvalidInputError([f"held_out: both splits need at least one instruction; {problem}. {remedy}"])
    drawn = set(np.random.default_rng(settings.seed).permutation(len(usable))[:count].tolist())
    training = [example for number, example in enumerate(usable) if number not in drawn]
    size = min(count, len(training))
    sample = [training[number * len(training) // size] for number in range(size)]
    return {"training": training, "training_sample": sample, "held_out": [usable[number] for number in sorted(drawn)]}
