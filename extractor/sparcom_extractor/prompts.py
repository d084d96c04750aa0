"""From instructions to token ids: the prompt format, the tokenizer, and what does not fit.

It knows Hugging Face tokenizers (`transformers`), not engines. What it returns is what the archive calls `text`:
exactly the string that was tokenised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.metadata import PromptFormat
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.origins import TemplateParts, chat_origin, raw_origin, unknown_origin

# Tokenising takes up to 470 bytes of memory per token, so a text that cannot fit is found without tokenising all of it.
BYTES_PER_TOKEN = 128  # the longest tokens that vocabularies have, runs of spaces
MAX_TEXT_BYTES = 16 * 2**20
BATCH_CHARACTERS = 2**18  # tokenised at once
TOKENS_AT_A_CUT = 64  # more than a cut through a text can add
NO_TEMPLATE = (
    "options.prompt_format: 'chat' needs a chat template, and this model's tokenizer has none. "
    "Choose prompt_format 'raw'"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One instruction as the model reads it. ids: int32 (T,). origin: uint8 (T,), see `Origin`. error: why it cannot
    run, or ""."""

    text: str
    ids: NDArray[np.int32]
    origin: NDArray[np.uint8]
    error: str = ""


def make_prompts(
    tokenizer: Any,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    limit: int,
    vocabulary: int | None = None,
) -> list[Prompt]:
    """Tokenise instructions.

    Args:
        tokenizer: a transformers tokenizer.
        instructions: the batch.
        options: prompt format and special tokens.
        limit: the most prompt tokens that fit the model's context beside what is generated. A longer prompt is kept
            with an error, so that the rest can run; so is a text that is too large to be tokenised, without its text.
        vocabulary: rows of the model's embedding; None where no model is at hand. A prompt with an id at or above it,
            or one that the tokenizer does not have, is kept with an error too.

    Raises:
        InvalidInputError: an instruction does not go with the prompt format, or the tokenizer has no chat template.
    """
    too_large = [text_size_problem(tokenizer, instruction, limit) for instruction in instructions]
    texts = _texts(tokenizer, instructions, options, too_large)
    special = options.add_special_tokens and options.prompt_format == "raw"
    encoded = _encode(tokenizer, [text for text in texts if text is not None], special)
    origins = _Origins(tokenizer, options.prompt_format)
    prompts = []
    for instruction, text, problem in zip(instructions, texts, too_large, strict=True):
        if problem:
            empty = np.empty(0, dtype=np.int32)
            prompts.append(Prompt("", empty, empty.astype(np.uint8), problem))
            continue
        found, encoding = (instruction.token_ids, None) if text is None else next(encoded)
        ids = np.array(found, dtype=np.int32)
        origin = origins.of(instruction, text, ids, encoding)
        prompts.append(Prompt(text or "", ids, origin, _problem(ids, limit, tokenizer, vocabulary)))
    return prompts


class _Origins:
    """Finds the origins of the tokens of one prompt after the other."""

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat) -> None:
        self._special = special_token_ids(tokenizer)
        chat = prompt_format == "chat"
        self._parts = TemplateParts(lambda messages: _render(tokenizer, messages)) if chat else None

    def of(
        self, item: Instruction, text: str | None, ids: NDArray[np.int32], encoding: Any | None
    ) -> NDArray[np.uint8]:
        """uint8 (T,), of the prompt with these ids. encoding: the fast tokenizer's; None without, or for given ids."""
        if self._parts is None:
            return raw_origin(ids, self._special, () if encoding is None else encoding.special_tokens_mask)
        spans = None if text is None or encoding is None else self._parts.content_spans(_messages(item), text)
        if spans is None or encoding is None:
            return unknown_origin(ids)
        return chat_origin(ids, encoding.offsets, spans, self._special)


def text_size_problem(tokenizer: Any, instruction: Instruction, limit: int) -> str:
    """Why a text, or all turns together, cannot be a prompt of `limit` tokens, or "". Tokenises no large text whole."""
    text = instruction.readable
    size = len(text.encode())
    most = min(limit * BYTES_PER_TOKEN, MAX_TEXT_BYTES)
    if size <= most and not _has_more_tokens(tokenizer, text, limit):
        return ""
    return (
        f"a prompt may have at most {limit} tokens and its text at most {most:,} bytes; this text has {size:,} bytes "
        "and more tokens than that. Shorten it, or serve the model with a larger max_model_len"
    )


def _has_more_tokens(tokenizer: Any, text: str, limit: int) -> bool:
    """Whether a text of more than one batch has more tokens than `limit`, counted part by part."""
    if len(text) <= BATCH_CHARACTERS:
        return False
    tokens = 0
    for first in range(0, len(text), BATCH_CHARACTERS):
        (ids,) = tokenizer([text[first : first + BATCH_CHARACTERS]], add_special_tokens=False)["input_ids"]
        tokens += len(ids) - TOKENS_AT_A_CUT
        if tokens > limit:
            return True
    return False


def _encode(tokenizer: Any, texts: Sequence[str], special: bool) -> Iterator[tuple[list[int], Any | None]]:
    """Token ids of each text, and its encoding where the tokenizer is a fast one.

    Tokenised in batches: a tokenizer gives far more than ids.
    """
    first = 0
    while first < len(texts):
        last, size = first + 1, len(texts[first])
        while last < len(texts) and size + len(texts[last]) <= BATCH_CHARACTERS:
            size += len(texts[last])
            last += 1
        batch = tokenizer(texts[first:last], add_special_tokens=special)
        # Encodings give offsets one prompt at a time; of all at once they take 150 bytes per token.
        yield from zip(batch["input_ids"], getattr(batch, "encodings", None) or repeat(None), strict=False)
        first = last


def check_formats(instructions: Sequence[Instruction], options: ExtractionOptions) -> None:
    """Refuse instructions that do not go with the prompt format; this needs no tokenizer.

    Raises:
        InvalidInputError: naming every such instruction.
    """
    if problems := _format_problems(instructions, options):
        raise InvalidInputError(problems)


def _format_problems(instructions: Sequence[Instruction], options: ExtractionOptions) -> list[str]:
    chat = options.prompt_format == "chat"
    problems = []
    for number, item in enumerate(instructions):
        where = f"instructions.{number} (id {item.id!r})"
        if chat and item.token_ids is not None:
            problems.append(f"{where}: token_ids go with prompt_format 'raw'; it is 'chat'. Give text or messages")
        if not chat and item.messages is not None:
            problems.append(f"{where}: messages go with prompt_format 'chat'; it is 'raw'. Choose chat, or give text")
    return problems


def _texts(
    tokenizer: Any, instructions: Sequence[Instruction], options: ExtractionOptions, too_large: Sequence[str]
) -> list[str | None]:
    """What is tokenised of each instruction; None where token ids were given, or the text is too large."""
    chat = options.prompt_format == "chat"
    problems = _format_problems(instructions, options)
    if chat and not getattr(tokenizer, "chat_template", None):
        problems.append(NO_TEMPLATE)
    if problems:
        raise InvalidInputError(problems)
    if chat:
        return _chat_texts(tokenizer, instructions, too_large)
    return [None if large else item.text for item, large in zip(instructions, too_large, strict=True)]


def _chat_texts(tokenizer: Any, instructions: Sequence[Instruction], too_large: Sequence[str]) -> list[str | None]:
    texts: list[str | None] = []
    problems: list[str] = []
    for number, item in enumerate(instructions):
        try:
            texts.append(None if too_large[number] else _render(tokenizer, _messages(item)))
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


def tokenizer_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer; some leave ids out, so that they have fewer tokens."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def _problem(ids: NDArray[np.int32], limit: int, tokenizer: Any, vocabulary: int | None) -> str:
    if not len(ids):
        return "a prompt has at least one token; the tokenizer makes none of this text"
    if len(ids) > limit:
        return (
            f"a prompt may have at most {limit} tokens (the model's context less what is generated); this one has "
            f"{len(ids)}. Shorten it, or serve the model with a larger max_model_len"
        )
    largest = int(ids.max())
    if vocabulary is not None and largest >= vocabulary:
        return (
            f"token ids must be below the size of the model's vocabulary, {vocabulary}; the largest is {largest}. "
            "Leave such tokens out, or resize the model's embedding to the tokenizer"
        )
    if largest >= len(tokenizer) and largest >= (known := tokenizer_size(tokenizer)):
        return f"token ids must be below the vocabulary's size {known}; the largest is {largest}"
    return ""


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The tokenizer of a model folder, or of a hub name at a branch, tag or commit.

    Raises:
        InvalidInputError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision or "main")
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
