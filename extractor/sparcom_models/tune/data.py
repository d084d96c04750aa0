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


def make_examples(tokenizer: Any, instructions: Sequence[Instruction], settings: TuneSettings) -> list[Example]:
    """Tokenize as an extraction does; of conversations that the assistant ends, only the assistant's tokens count.

    Raises:
        InvalidInputError: naming every instruction that does not fit the prompt format or the tokenizer.
    """
    others, answered = [], []
    for item in instructions:
        ends = settings.prompt_format == "chat" and item.messages and item.messages[-1].role == "assistant"
        (answered if ends else others).append(item)
    prompts = make_prompts(tokenizer, others, ExtractionOptions(prompt_format=settings.prompt_format), limit=2**31)
    named = list(zip([item.id for item in others], prompts, strict=True))
    if problems := [f"instruction {name!r}: {prompt.error}" for name, prompt in named if prompt.error]:
        raise InvalidInputError(problems)
    examples = {name: Example(name, prompt.ids.tolist(), prompt.ids.tolist()) for name, prompt in named}
    examples |= {item.id: _assistant_only(tokenizer, item) for item in answered}
    return [examples[item.id] for item in instructions]


def _assistant_only(tokenizer: Any, instruction: Instruction) -> Example:
    """Label the assistant's turns alone, which few chat templates mark.

    A turn is the difference between two renderings: up to and with it, and before it with the opening of an answer.
    """
    messages = [message.model_dump() for message in instruction.messages or ()]

    def render(count: int, *, opened: bool) -> tuple[str, list[int]]:
        try:
            text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=opened)
        except Exception as error:  # templates are programs of the model's authors and raise what they like
            problem = f"instruction {instruction.id!r}: its messages do not fit the model's chat template: {error}"
            raise InvalidInputError([problem]) from error
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]

    whole, ids = render(len(messages), opened=False)
    labels = [IGNORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            (before, ids_before), (after, ids_after) = render(number, opened=True), render(number + 1, opened=False)
            if not (whole.startswith(after) and after.startswith(before)):
                problem = (
                    f"instruction {instruction.id!r}: a chat template must render the beginning of a conversation as "
                    "it does within the whole, so that the assistant's tokens can be found; this model's rewrites it. "
                    "Give conversations with one answer, or text"
                )
                raise InvalidInputError([problem])
            turn = slice(_common_length(ids, ids_before), _common_length(ids, ids_after))
            labels[turn] = ids[turn]
    return Example(instruction.id, ids, labels)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


@dataclass(frozen=True, slots=True)
class TuneData:
    """Training and held-out examples; how many were truncated, and how many had no token left to predict.

    sample: training examples, evenly spread and at most as many as are held out, to measure the loss on.
    """

    training: list[Example]
    sample: list[Example]
    held_out: list[Example]
    truncated: int
    left_out: int


def split(examples: Sequence[Example], settings: TuneSettings) -> TuneData:
    """Truncate, leave out what has no token to predict, and hold out a share drawn by the seed.

    Raises:
        InvalidInputError: every instruction is too long, or one of the two parts would be empty.
    """
    limit, lengths = settings.max_length, [len(example.ids) for example in examples]
    truncated = [Example(example.id, example.ids[:limit], example.labels[:limit]) for example in examples]
    usable = [example for example in truncated if example.predicted]
    count = round(settings.held_out * len(usable))
    problem = ""
    if min(lengths) > limit:
        problem = (
            f"max_length: at least one instruction fits; all {len(examples)} are longer than {limit} tokens, the "
            f"shortest has {min(lengths)}. Give a larger --max-length or shorter instructions"
        )
    elif not 0 < count < len(usable):
        problem = (
            f"held_out: at least one instruction is held out and one is trained on; {settings.held_out} of "
            f"{len(usable)} usable instructions leaves {count} and {len(usable) - count}. "
            "Give another --held-out or more instructions"
        )
    if problem:
        raise InvalidInputError([problem])
    drawn = set(np.random.default_rng(settings.seed).permutation(len(usable))[:count].tolist())
    training = [example for number, example in enumerate(usable) if number not in drawn]
    held_out = [usable[number] for number in sorted(drawn)]
    size = min(count, len(training))
    sample = [training[number * len(training) // size] for number in range(size)]
    return TuneData(training, sample, held_out, sum(length > limit for length in lengths), len(examples) - len(usable))
