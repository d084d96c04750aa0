"""Turn instructions into prompts: prompt format, tokenization, length limits. Needs `transformers` but no engine.

A prompt's text is exactly the string that was tokenized; the archive stores it as `text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.origins import chat_origin, content_finder, raw_origin, unknown_origin

# Tokenizing takes up to 470 bytes of memory per token. Texts that cannot fit are found without tokenizing all of them.
BYTES_PER_TOKEN = 128  # the longest tokens of vocabularies are runs of spaces
MAX_TEXT_BYTES = 16 * 2**20
BATCH_CHARACTERS = 2**18  # per call of the tokenizer
TOKENS_PER_CUT = 64  # upper bound of the tokens that splitting a text can add
NO_TEMPLATE = (
    "options.prompt_format: 'chat' needs a chat template; this model's tokenizer has none. Choose prompt_format 'raw'"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One instruction as the model receives it."""

    text: str
    ids: NDArray[np.int32]  # (T,)
    origin: NDArray[np.uint8]  # (T,), see `Origin`
    error: str = ""  # why it cannot run


def make_prompts(
    tokenizer: Any,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    limit: int,
    vocabulary: int | None = None,
) -> list[Prompt]:
    """Tokenize instructions. A prompt that cannot run carries an error; the others still run.

    tokenizer: from transformers. limit: maximum prompt length in tokens, which leaves room for the response. A text
    too large to tokenize is omitted from its prompt. vocabulary: rows of the model's embedding, an exclusive bound of
    token ids; None if unknown. Raises InvalidInputError if an instruction does not match the prompt format, or the
    tokenizer has no chat template.
    """
    chat = options.prompt_format == "chat"
    check_formats(
        instructions, options, [NO_TEMPLATE] if chat and not getattr(tokenizer, "chat_template", None) else []
    )
    too_large = [_size_problem(tokenizer, item.readable, limit) for item in instructions]
    texts = _texts(tokenizer, instructions, chat, too_large)
    encoded = _encode(tokenizer, [text for text in texts if text is not None], options.add_special_tokens and not chat)
    special, find_contents = special_token_ids(tokenizer), content_finder(partial(_render, tokenizer))
    prompts = []
    for item, text, problem in zip(instructions, texts, too_large, strict=True):
        given = () if problem else item.token_ids
        found, encoding = (given, None) if text is None else next(encoded)
        ids = np.array(found, dtype=np.int32)
        if not chat:
            origin = raw_origin(ids, special, () if encoding is None else encoding.special_tokens_mask)
        elif encoding is None or text is None or (spans := find_contents(_messages(item), text)) is None:
            origin = unknown_origin(ids)
        else:
            origin = chat_origin(ids, encoding.offsets, spans, special)
        error = problem or _ids_problem(ids, limit, tokenizer, vocabulary)
        prompts.append(Prompt(text or "", ids, origin, error))
    return prompts


def check_formats(instructions: Sequence[Instruction], options: ExtractionOptions, further: Sequence[str] = ()) -> None:
    """Raise InvalidInputError listing every instruction that does not match the prompt format, and `further` problems.
    Needs no tokenizer."""
    problems = [
        problem for number, item in enumerate(instructions) if (problem := format_problem(number, item, options))
    ]
    if problems := [*problems, *further]:
        raise InvalidInputError(problems)


def format_problem(number: int, item: Instruction, options: ExtractionOptions) -> str | None:
    """Return why an instruction does not match the prompt format, or None."""
    chat, where = options.prompt_format == "chat", f"instructions.{number} (id {item.id!r})"
    if chat and item.token_ids is not None:
        return f"{where}: token_ids need prompt_format 'raw'; it is 'chat'. Give text or messages"
    if not chat and item.messages is not None:
        return f"{where}: messages need prompt_format 'chat'; it is 'raw'. Choose chat, or give text"
    return None


def _size_problem(tokenizer: Any, text: str, limit: int) -> str:
    """Return why a text cannot be a prompt of `limit` tokens, or "". Never tokenizes a large text in one call."""
    size, max_size = len(text.encode()), min(limit * BYTES_PER_TOKEN, MAX_TEXT_BYTES)
    if size <= max_size and not _has_more_tokens(tokenizer, text, limit):
        return ""
    return (
        f"a prompt may have at most {limit} tokens and its text at most {max_size:,} bytes; this text of {size:,} "
        "bytes exceeds that. Shorten it, or serve the model with a larger max_model_len"
    )


def _has_more_tokens(tokenizer: Any, text: str, limit: int) -> bool:
    """Return whether a text of more than one batch has more than `limit` tokens, counted in parts."""
    tokens, starts = 0, range(0, len(text), BATCH_CHARACTERS)
    for start in starts if len(starts) > 1 else ():
        (ids,) = tokenizer([text[start : start + BATCH_CHARACTERS]], add_special_tokens=False)["input_ids"]
        tokens += len(ids) - TOKENS_PER_CUT
        if tokens > limit:
            return True
    return False


def _texts(
    tokenizer: Any, instructions: Sequence[Instruction], chat: bool, too_large: Sequence[str]
) -> list[str | None]:
    """Return the text to tokenize of each instruction; None if token ids were given or the text is too large."""
    texts: list[str | None] = []
    problems: list[str] = []
    for number, (item, large) in enumerate(zip(instructions, too_large, strict=True)):
        try:
            texts.append(None if large else _render(tokenizer, _messages(item)) if chat else item.text)
        except Exception as error:  # noqa: BLE001  templates are programs by the model's authors and may raise anything
            problems.append(
                f"instructions.{number} (id {item.id!r}): messages do not fit the model's chat template: {error}"
            )
    if problems:
        raise InvalidInputError(problems)
    return texts


def _messages(instruction: Instruction) -> list[dict[str, Any]]:
    """Return the turns of a chat; a plain text becomes one user turn."""
    if instruction.messages is None:
        return [{"role": "user", "content": instruction.text}]
    return [message.model_dump() for message in instruction.messages]


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _encode(tokenizer: Any, texts: Sequence[str], special: bool) -> Iterator[tuple[list[int], Any | None]]:
    """Yield the token ids of each text, and its encoding if the tokenizer is a fast one.
    Tokenizes in batches, because a tokenizer returns far more than ids."""
    first = 0
    while first < len(texts):
        last, size = first + 1, len(texts[first])
        while last < len(texts) and size + len(texts[last]) <= BATCH_CHARACTERS:
            size += len(texts[last])
            last += 1
        batch = tokenizer(texts[first:last], add_special_tokens=special)
        # Encodings give offsets one prompt at a time; the offsets of a whole batch take 150 bytes per token.
        yield from zip(batch["input_ids"], getattr(batch, "encodings", None) or repeat(None), strict=False)
        first = last


def _ids_problem(ids: NDArray[np.int32], limit: int, tokenizer: Any, vocabulary: int | None) -> str:
    """Return why a prompt with these ids cannot run, or ""."""
    if not len(ids):
        return "a prompt needs at least one token; the tokenizer produces none from this text"
    if len(ids) > limit:
        return (
            f"a prompt may have at most {limit} tokens (the model's context minus the response); this one has "
            f"{len(ids)}. Shorten it, or serve the model with a larger max_model_len"
        )
    largest = int(ids.max())
    if vocabulary is not None and largest >= vocabulary:
        return (
            f"token ids must be below the size of the model's vocabulary, {vocabulary}; the largest is {largest}. "
            "Remove such tokens, or resize the model's embedding to match the tokenizer"
        )
    if largest >= len(tokenizer):  # some tokenizers skip ids, so their largest id exceeds their number of tokens
        size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
        if largest >= size:
            return f"token ids must be below the vocabulary's size {size}; the largest is {largest}"
    return ""


def token_ids_sha256(prompts: Sequence[NDArray[np.int32]]) -> str:
    """Return the SHA-256 over the lengths and ids of prompts, int32 (T,) each: equal if they align token by token."""
    lengths = np.array([len(ids) for ids in prompts], dtype="<i8")
    return hashlib.sha256(
        b"".join(part.tobytes() for part in (lengths, *(ids.astype("<i4") for ids in prompts)))
    ).hexdigest()


def prompt_token_ids(
    model: str, instructions: Sequence[Instruction], options: ExtractionOptions, revision: str | None = None
) -> list[NDArray[np.int32]]:
    """Return the token ids, int32 (T,), that a model's tokenizer gives each instruction. Starts no engine.

    model, revision: as for `load_tokenizer`. Prompts may have any length, but a text too large to tokenize has no ids.
    Raises InvalidInputError as `load_tokenizer` and `make_prompts` do.
    """
    prompts = make_prompts(load_tokenizer(model, revision), instructions, options, MAX_TEXT_BYTES)
    return [prompt.ids for prompt in prompts]


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a model folder, or of a hub name at `revision` (branch, tag or commit).
    Raises InvalidInputError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"the tokenizer of model {model!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def special_token_ids(tokenizer: Any) -> list[int] | None:
    """Return the ids that the tokenizer marks as special, ascending; None if it does not report them.
    Combines tokens with a role (BOS, EOS, padding, unknown) and added tokens flagged as special. Neither suffices:
    the turn markers of LLaMA 3's template have no role, and a regular token of the vocabulary may have one."""
    with_role = getattr(tokenizer, "all_special_ids", None)
    if with_role is None:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*map(int, with_role), *(int(index) for index, token in added.items() if token.special)})


def tokenizer_sha256(tokenizer: Any, model: str) -> str:
    """Return the SHA-256 of a model folder's `tokenizer.json`, else of the serialized tokenizer or its vocabulary."""
    file = Path(model) / "tokenizer.json"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()
