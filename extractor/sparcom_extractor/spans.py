"""Spans of traces: the server calls `use_spans`, so that this package needs no library for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Attribute = str | int
SpanFactory = Callable[[str, Mapping[str, Attribute]], AbstractContextManager[Any]]


def _no_span(_: str, __: Mapping[str, Attribute]) -> AbstractContextManager[Any]:
    return nullcontext()


_factories: list[SpanFactory] = [_no_span]  # one


def use_spans(factory: SpanFactory | None) -> None:
    """Start spans by this function from now on; None turns them off."""
    _factories[0] = factory or _no_span


def span(name: str, **attributes: Attribute) -> AbstractContextManager[Any]:
    """Return the context of a span within the current one."""
    return _factories[0](name, attributes)
