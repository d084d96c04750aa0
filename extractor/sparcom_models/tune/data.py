"""Turn instructions into training examples: token ids, which of them count, truncation, and the held-out split."""

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

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction. ids: (T,) token ids. labels: (T,) the same ids, IGNORED where a token does not count."""

    id: str
    ids: list[int]
    labels: list[int]

    @property
    def predicted(self) -> int:
        """Number of tokens whose loss counts; the first of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


# Examples of "training", "held_out", and "training_sample": of the first, evenly spread, as many as are held out.
Parts = dict[str, list[Example]]


def make_examples(tokenizer: Any, instructions: Sequence[Instruction], settings: TuneSettings) -> list[Example]:
    """Tokenize as an extraction does; of conversations that the assistant ends, only the assistant's tokens count.

    Raises:
        InvalidInputError: naming every instruction that does not fit the prompt format or the tokenizer.
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
    """Label the assistant's turns alone, which few chat templates mark.

    A turn is the difference between two renderings: up to and with it, and before it with the opening of an answer.
    """
    messages, where = (
        [message.model_dump() for message in instruction.messages or ()],
        f"instruction {instruction.id!r}",
    )

    def render(count: int, *, opened: bool) -> tuple[str, list[int]]:
        try:
            text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=opened)
        except Exception as error:  # templates are programs of the model's authors and raise what they like
            raise InvalidInputError([f"{where}: its messages do not fit the model's chat template: {error}"]) from error
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]

    whole, ids = render(len(messages), opened=False)
    labels = [IGNORED] * len(ids)
    for number in (number for number, message in enumerate(messages) if message["role"] == "assistant"):
        (before, ids_before), (after, ids_after) = render(number, opened=True), render(number + 1, opened=False)
        if not (whole.startswith(after) and after.startswith(before)):
            problem = (
                f"{where}: a chat template must render the beginning of a conversation as it does within the whole; "
                "this model's rewrites it. Give conversations with one answer, or text"
            )
            raise InvalidInputError([problem])
        turn = slice(_common_length(ids, ids_before), _common_length(ids, ids_after))
        labels[turn] = ids[turn]
    return Example(instruction.id, ids, labels)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def split(examples: Sequence[Example], settings: TuneSettings) -> Parts:
    """Truncate, leave out what has no token to predict, and hold out a share drawn by the seed.

    Raises:
        InvalidInputError: every instruction is too long, or one of the two parts would be empty.
    """
    limit, shortest = settings.max_length, min(len(example.ids) for example in examples)
    truncated = [Example(example.id, example.ids[:limit], example.labels[:limit]) for example in examples]
    usable = [example for example in truncated if example.predicted]
    count = round(settings.held_out * len(usable))
    if shortest > limit:
        problem = f"at least one instruction fits; all {len(examples)} are longer than {limit} tokens, the shortest has"
        raise InvalidInputError([f"max_length: {problem} {shortest}. Give a larger --max-length or shorter texts"])
    if not 0 < count < len(usable):
        problem = f"{settings.held_out} of {len(usable)} usable instructions leaves {count} and {len(usable) - count}"
        remedy = "Give another --held-out or more instructions"
        raise InvalidInputError([f"held_out: one instruction at least is held out and one is not; {problem}. {remedy}"])
    drawn = set(np.random.default_rng(settings.seed).permutation(len(usable))[:count].tolist())
    training = [example for number, example in enumerate(usable) if number not in drawn]
    size = min(count, len(training))
    sample = [training[number * len(training) // size] for number in range(size)]
    return {"training": training, "training_sample": sample, "held_out": [usable[number] for number in sorted(drawn)]}
