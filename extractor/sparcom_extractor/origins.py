"""Find the origin of each prompt token: the instruction's content, the chat template, or a special token.

    raw    tokens that the tokenizer added or marks as special are special; all others are content
    chat   1. render the template with a unique marker in place of each message's content
           2. split this rendering at the markers; the parts are the template's literals
           3. check that literals and contents, in this order, equal the real text; contents may be stripped
           4. tokens that cover a character of a content are content; all others belong to the template

All tokens of a prompt are unknown if its template cannot be split this way, or its tokenizer gives no offsets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from sparcom_data.schema import Origin

SHOWN_IDS = 3  # in a warning

Span = tuple[int, int]


def content_finder(
    render: Callable[[Sequence[dict[str, Any]]], str],
) -> Callable[[Sequence[dict[str, Any]], str], list[Span] | None]:
    """Return a function that locates message contents in a chat's text, as characters [start, stop).
    It returns None if a check fails. render: maps messages (dicts with role and content) to the chat's text."""
    marker = f"sparcom{uuid4().hex}"

    @cache  # one marked rendering serves all chats of the same roles
    def split(roles: tuple[str, ...]) -> list[str]:
        """Return the literals, with message numbers between them; empty if the template rejects the markers."""
        marked = [{"role": role, "content": f"{marker}n{number}m"} for number, role in enumerate(roles)]
        try:
            return re.split(rf"{marker}n(\d+)m", render(marked))
        except Exception:  # noqa: BLE001  templates may raise anything
            return []

    def find(messages: Sequence[dict[str, Any]], text: str) -> list[Span] | None:
        pieces = split(tuple(message["role"] for message in messages))
        return _locate(pieces, [message["content"] for message in messages], text)

    return find


def _locate(pieces: Sequence[str], contents: Sequence[str], text: str) -> list[Span] | None:
    """Return the spans of the contents, or None unless literals and contents make up the whole text."""
    if not pieces or not text.startswith(pieces[0]):
        return None
    spans, at = [], len(pieces[0])
    for number, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        content = contents[int(number)]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        form = next((form for form in forms if text.startswith(form + literal, at)), None)
        if form is None:
            return None
        spans.append((at, at + len(form)))
        at += len(form) + len(literal)
    return spans if at == len(text) else None


def raw_origin(ids: NDArray[np.int32], special_ids: Sequence[int] | None, added: Sequence[int]) -> NDArray[np.uint8]:
    """Return the origins of a prompt in raw format: uint8 (T,).
    ids: int32 (T,). special_ids: ids marked as special; None if the tokenizer does not report them: all are unknown.
    added: bool (T,), whether the tokenizer added the token; empty if not reported."""
    if special_ids is None:
        return unknown_origin(ids)
    special = np.isin(ids, np.array(special_ids, dtype=np.int64))
    if len(added):
        special |= np.array(added, dtype=np.bool_)
    return np.where(special, Origin.SPECIAL, Origin.CONTENT).astype(np.uint8)


def chat_origin(
    ids: NDArray[np.int32], offsets: Sequence[Span], spans: Sequence[Span], special_ids: Sequence[int] | None
) -> NDArray[np.uint8]:
    """Return the origins of a prompt in chat format: uint8 (T,). Special ids within a content are special.
    ids: int32 (T,). offsets, spans: characters [start, stop) of the text, per token and per content."""
    start, stop = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    content = np.zeros(len(ids), dtype=np.bool_)
    for first, last in spans:
        content |= (start < last) & (stop > first) & (stop > start)
    return np.where(content, raw_origin(ids, special_ids or (), ()), Origin.TEMPLATE).astype(np.uint8)


def unknown_origin(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return unknown origins for all tokens: uint8 (T,)."""
    return np.full(len(ids), Origin.UNKNOWN, dtype=np.uint8)


def prompt_warnings(
    names: Sequence[str], ids: Iterable[NDArray[np.int32]], origins: Iterable[NDArray[np.uint8]], bos: int | None
) -> list[str]:
    """Return warnings about prompts that can run but may not be intended.
    names: ids of the instructions. ids, origins: int32 and uint8 (T,) per prompt. bos: id of the BOS token."""
    found = []
    if doubled := [name for name, tokens in zip(names, ids, strict=True) if tokens[:2].tolist() == [bos, bos]]:
        found.append(
            f"{_shown(doubled, len(names))}: the prompt begins with the BOS token (id {bos}) twice. Remove it from the "
            "text, the token ids or the chat template, or set add_special_tokens to false (--no-special-tokens)"
        )
    if unknown := [name for name, origin in zip(names, origins, strict=True) if (origin == Origin.UNKNOWN).any()]:
        found.append(
            f"{_shown(unknown, len(names))}: the origin of the prompt's tokens is unknown, because the chat template "
            "depends on the content or the tokenizer gives no offsets. `sparcom analyze --tokens content` excludes "
            "these instructions"
        )
    return found


def _shown(some: Sequence[str], total: int) -> str:
    """Return the number of instructions and the first ids."""
    first = ", ".join([*map(repr, some[:SHOWN_IDS]), *(["…"] if len(some) > SHOWN_IDS else [])])
    return f"{len(some):,} of {total:,} instructions ({first})"
