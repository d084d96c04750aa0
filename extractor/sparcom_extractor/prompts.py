"""From instructions to token ids: the prompt format, the tokenizer, and what does not fit.

It knows Hugging Face tokenizers (`transformers`), not engines. What it returns is what the archive calls `text`:
exactly the string that was tokenised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.metadata import PromptFormat
from sparcom_data.options import ExtractionOptions
from sparcom_extractor.origins import TemplateParts, chat_origin, raw_origin, unknown_origin


@dataclass(frozen=True, slots=True)
class Prompt:
    """One instruction as the model reads it. ids: int32 (T,). origin: uint8 (T,), see `Origin`. error: why it cannot
    run, or ""."""

    text: str
    ids: NDArray[np.int32]
    origin: NDArray[np.uint8]
    error: str = ""


def make_prompts(
    tokenizer: Any, instructions: Sequence[Instruction], options: ExtractionOptions, limit: int
) -> list[Prompt]:
    """Tokenise instructions.

    Args:
        tokenizer: a transformers tokenizer.
        instructions: the batch.
        options: prompt format and special tokens.
        limit: the most prompt tokens that fit the model's context beside what is generated. A longer prompt is kept
            with an error, so that the rest can run.

    Raises:
        InvalidInputError: an instruction does not go with the prompt format, or the tokenizer has no chat template.
    """
    texts = _texts(tokenizer, instructions, options)
    special = options.add_special_tokens and options.prompt_format == "raw"
    given = [text for text in texts if text is not None]
    batch = tokenizer(given, add_special_tokens=special) if given else {"input_ids": []}
    encoded = enumerate(batch["input_ids"])
    origins = _Origins(tokenizer, batch, options.prompt_format)
    prompts = []
    for instruction, text in zip(instructions, texts, strict=True):
        number, found = (None, instruction.token_ids) if text is None else next(encoded)
        ids = np.array(found, dtype=np.int32)
        prompts.append(
            Prompt(text or "", ids, origins.of(instruction, text, ids, number), _problem(ids, limit, len(tokenizer)))
        )
    return prompts


class _Origins:
    """Finds the origins of one prompt after the other of a batch that was tokenised."""

    def __init__(self, tokenizer: Any, batch: Any, prompt_format: PromptFormat) -> None:
        self._special = special_token_ids(tokenizer)
        # Encodings of a fast tokenizer give offsets one prompt at a time; of all at once they take 150 bytes per token.
        self._encodings = getattr(batch, "encodings", None)
        chat = prompt_format == "chat"
        self._parts = TemplateParts(lambda messages: _render(tokenizer, messages)) if chat else None

    def of(self, item: Instruction, text: str | None, ids: NDArray[np.int32], number: int | None) -> NDArray[np.uint8]:
        """uint8 (T,), of the prompt with these ids. number: its place in the batch, None where ids were given."""
        encoding = None if number is None or self._encodings is None else self._encodings[number]
        if self._parts is None:
            return raw_origin(ids, self._special, () if encoding is None else encoding.special_tokens_mask)
        spans = None if text is None or encoding is None else self._parts.content_spans(_messages(item), text)
        if spans is None or encoding is None:
            return unknown_origin(ids)
        return chat_origin(ids, encoding.offsets, spans, self._special)


def _texts(tokenizer: Any, instructions: Sequence[Instruction], options: ExtractionOptions) -> list[str | None]:
    """What is tokenised of each instruction; None where token ids were given."""
    chat = options.prompt_format == "chat"
    problems = []
    for number, item in enumerate(instructions):
        where = f"instructions.{number} (id {item.id!r})"
        if chat and item.token_ids is not None:
            problems.append(f"{where}: token_ids go with prompt_format 'raw'; it is 'chat'. Give text or messages")
        if not chat and item.messages is not None:
            problems.append(f"{where}: messages go with prompt_format 'chat'; it is 'raw'. Choose chat, or give text")
    if chat and not getattr(tokenizer, "chat_template", None):
        problems.append(
            "options.prompt_format: 'chat' needs a chat template and this model's tokenizer has none. "
            "Choose prompt_format 'raw'"
        )
    if problems:
        raise InvalidInputError(problems)
    return _chat_texts(tokenizer, instructions) if chat else [item.text for item in instructions]


def _chat_texts(tokenizer: Any, instructions: Sequence[Instruction]) -> list[str | None]:
    texts: list[str | None] = []
    problems: list[str] = []
    for number, item in enumerate(instructions):
        try:
            texts.append(_render(tokenizer, _messages(item)))
        except Exception as error:  # noqa: BLE001  templates are programs of the model's authors and raise what they like
            problems.append(
                f"instructions.{number} (id {item.id!r}): messages do not fit the model's chat template: {error}"
            )
    if problems:
        raise InvalidInputError(problems)
    return texts


def _messages(instruction: Instruction) -> list[dict[str, Any]]:
    """The turns of a chat; a text is one turn of the user."""
    if instruction.messages is None:
        return [{"role": "user", "content": instruction.text}]
    return [message.model_dump() for message in instruction.messages]


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _problem(ids: NDArray[np.int32], limit: int, vocabulary: int) -> str:
    if not len(ids):
        return "a prompt has at least one token; the tokenizer makes none of this text"
    if len(ids) > limit:
        return (
            f"a prompt may have at most {limit} tokens (the model's context less what is generated); this one has "
            f"{len(ids)}. Shorten it, or serve the model with a larger max_model_len"
        )
    if int(ids.max()) >= vocabulary:
        return f"token ids must be below the vocabulary's size {vocabulary}; the largest is {int(ids.max())}"
    return ""


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        InvalidInputError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            [f"the tokenizer of model {model!r} cannot be loaded: {str(error).splitlines()[0]}"]
        ) from error


def special_token_ids(tokenizer: Any) -> list[int] | None:
    """Ids that the tokenizer itself marks as special, ascending; None where it does not say.

    Two lists of a transformers tokenizer together: the tokens with a role (BOS, EOS, padding, unknown) and the added
    tokens flagged as special. Each lacks some of the other: the turn marks of LLaMA 3's template have no role, and a
    role may be given to a plain token of the vocabulary.
    """
    with_role = getattr(tokenizer, "all_special_ids", None)
    if with_role is None:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*map(int, with_role), *(int(index) for index, token in added.items() if token.special)})


def tokenizer_sha256(tokenizer: Any, model: str) -> str:
    """SHA-256 that tells tokenizers apart: of `tokenizer.json` where the model is a folder that has one, otherwise of
    the tokenizer's own serialised form, otherwise of its vocabulary."""
    file = Path(model) / "tokenizer.json"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()
