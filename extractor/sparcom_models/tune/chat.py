"""Which tokens of a conversation the assistant wrote. Knows chat templates, not models.

A chat template is a program that says nothing of who wrote what. So it is run on the conversation up to and including
each turn of the assistant, and up to that turn with the words that open an answer; what the first has more than the
second is the turn, with the sign that ends it. Where a template rewrites earlier turns this would be wrong, and is
refused.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparcom_data.instructions import Instruction

IGNORED = -100  # the label that torch's cross entropy leaves out


def ends_with_assistant(instruction: Instruction) -> bool:
    """Whether it is a conversation whose last word the assistant has."""
    return bool(instruction.messages) and instruction.messages[-1].role == "assistant"  # type: ignore[index]


def assistant_only(tokenizer: Any, instruction: Instruction) -> tuple[list[int], list[int]]:
    """Token ids (T,) of a conversation and its labels (T,): the ids of the assistant's tokens, IGNORED elsewhere.

    Raises:
        InvalidInputError: the tokenizer has no chat template, or one with which the turns cannot be told apart.
    """
    messages = [message.model_dump() for message in instruction.messages or ()]
    whole = _rendered(tokenizer, instruction, messages, opened=False)
    ids = _tokens(tokenizer, whole)
    labels = [IGNORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, instruction, messages[:number], opened=True)
        after = _rendered(tokenizer, instruction, messages[: number + 1], opened=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise InvalidInputError(
                [
                    f"instruction {instruction.id!r}: the assistant's tokens are found where a chat template writes a "
                    "conversation's beginning as it stands in the whole; this model's rewrites it. "
                    "Give conversations with one answer, or text"
                ]
            )
        first, last = (_common(ids, _tokens(tokenizer, text)) for text in (before, after))
        labels[first:last] = ids[first:last]
    return ids, labels


def _rendered(tokenizer: Any, instruction: Instruction, messages: list[dict[str, str]], *, opened: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInputError(
            ["prompt_format: 'chat' needs a chat template and this model's tokenizer has none. Choose 'raw'"]
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))
    except Exception as error:
        # Templates are programs of the model's authors and raise what they like.
        raise InvalidInputError(
            [f"instruction {instruction.id!r}: its messages do not fit the model's chat template: {error}"]
        ) from error


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
