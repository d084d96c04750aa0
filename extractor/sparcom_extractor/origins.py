"""Finds where each prompt token comes from: the instruction's content, the chat template, or a special token.

    raw    a token is special if the tokenizer added it, or if its id is marked as special; all others are content
    chat   1. render the template with a unique mark in place of each message's content
           2. cut this rendering at the marks: the literal parts, which the template wrote
           3. prove that the parts and the contents, in this order, are the true text; a content may be stripped
           4. a token that covers a character of a content is content; all others are the template's

A prompt whose template cannot be taken apart in this way, or whose tokenizer gives no offsets, is unknown as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from sparcom_data.schema import Origin

NAMED = 3  # ids that a warning gives

Span = tuple[int, int]
Render = Any
"""Takes messages (dicts with role and content), returns the text of the chat."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """A rendered template. literals: n + 1 strings that the template wrote. contents: n numbers, the messages between
    them."""

    literals: list[str]
    contents: list[int]


class TemplateParts:
    """Takes chats apart; one rendering with marks serves all chats of the same roles."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._mark = f"sparcom{uuid4().hex}"
        self._known: dict[tuple[str, ...], _Parts | None] = {}

    def content_spans(self, messages: Sequence[dict[str, str]], text: str) -> list[Span] | None:
        """Characters [start, stop) of `text` that are contents of messages; None where this cannot be proved."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._known:
            self._known[roles] = self._parts(roles)
        parts = self._known[roles]
        return None if parts is None else _locate(parts, [message["content"] for message in messages], text)

    def _parts(self, roles: Sequence[str]) -> _Parts | None:
        messages = [{"role": role, "content": f"{self._mark}n{number}m"} for number, role in enumerate(roles)]
        try:
            pieces = re.split(rf"{self._mark}n(\d+)m", self._render(messages))
        except Exception:  # noqa: BLE001  a template that refuses the marks cannot be taken apart
            return None
        return _Parts(pieces[::2], [int(number) for number in pieces[1::2]])


def _locate(parts: _Parts, contents: Sequence[str], text: str) -> list[Span] | None:
    """Where the contents lie in `text`; None unless literals and contents are the whole text."""
    spans, at = [], len(parts.literals[0])
    if not text.startswith(parts.literals[0]):
        return None
    for number, literal in zip(parts.contents, parts.literals[1:], strict=True):
        content = contents[number]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        form = next((one for one in forms if text.startswith(one + literal, at)), None)
        if form is None:
            return None
        spans.append((at, at + len(form)))
        at += len(form) + len(literal)
    return spans if at == len(text) else None


def raw_origin(
    ids: NDArray[np.int32], special_ids: Sequence[int] | None, added: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Origins of a prompt in raw format: uint8 (T,).

    Args:
        ids: int32 (T,).
        special_ids: what the tokenizer marks as special; None where it does not say, which leaves all unknown.
        added: bool (T,) from the tokenizer, whether it added the token; empty where it does not say.
    """
    if special_ids is None:
        return unknown_origin(ids)
    special = np.isin(ids, np.array(special_ids, dtype=np.int64))
    if len(added):
        special |= np.array(added, dtype=np.bool_)
    return np.where(special, Origin.SPECIAL, Origin.CONTENT).astype(np.uint8)


def chat_origin(
    ids: NDArray[np.int32], offsets: Sequence[Span], spans: Sequence[Span], special_ids: Sequence[int] | None
) -> NDArray[np.uint8]:
    """Origins of a prompt in chat format: uint8 (T,). Special ids within a content are special.

    Args:
        ids: int32 (T,).
        offsets: characters [start, stop) of the text that each token covers.
        spans: of the contents, as `TemplateParts.content_spans` finds them.
    """
    start, stop = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    content = np.zeros(len(ids), dtype=np.bool_)
    for first, last in spans:
        content |= (start < last) & (stop > first) & (stop > start)
    special = np.isin(ids, np.array(special_ids or (), dtype=np.int64))
    inside = np.where(special, Origin.SPECIAL, Origin.CONTENT)
    return np.where(content, inside, Origin.TEMPLATE).astype(np.uint8)


def unknown_origin(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """uint8 (T,): every token unknown."""
    return np.full(len(ids), Origin.UNKNOWN, dtype=np.uint8)


def begins_twice(ids: NDArray[np.int32], bos: int | None) -> bool:
    """Whether a prompt begins with the BOS token twice."""
    return bos is not None and len(ids) > 1 and bool((ids[:2] == bos).all())


def prompt_warnings(
    names: Sequence[str], ids: Iterable[NDArray[np.int32]], origins: Iterable[NDArray[np.uint8]], bos: int | None
) -> list[str]:
    """Sentences about prompts that run but may not be what was meant.

    Args:
        names: ids of the instructions.
        ids, origins: of each prompt, int32 and uint8 (T,).
        bos: id of the BOS token; None where the tokenizer has none.
    """
    found = []
    if doubled := [name for name, one in zip(names, ids, strict=True) if begins_twice(one, bos)]:
        found.append(
            f"{_named(doubled, len(names))}: the prompt begins with the BOS token (id {bos}) twice. Remove it from the "
            "text, the token ids or the chat template, or set add_special_tokens to false (--no-special-tokens)"
        )
    unknown = [name for name, one in zip(names, origins, strict=True) if (one == Origin.UNKNOWN).any()]
    if unknown:
        found.append(
            f"{_named(unknown, len(names))}: where the prompt's tokens come from is unknown, since the chat template "
            "changes with the content or the tokenizer gives no offsets. `sparcom analyze --tokens content` leaves "
            "these instructions out"
        )
    return found


def _named(some: Sequence[str], of: int) -> str:
    """How many instructions, and the first ids."""
    first = ", ".join(map(repr, some[:NAMED])) + (", …" if len(some) > NAMED else "")
    return f"{len(some):,} of {of:,} instructions ({first})"
