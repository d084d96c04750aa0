"""Parts of a step that do not hang on each other: one that breaks must not hide what the others find."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Attempts:
    """Runs parts one after the other; `finish` raises what the first broken one raised."""

    def __init__(self) -> None:
        self._errors: dict[str, Exception] = {}

    async def run(self, name: str, part: Awaitable[_T]) -> _T | None:
        """The part's result, or None where it broke, or broke before."""
        try:
            return await part
        except Exception as error:  # noqa: BLE001  `finish` raises it
            _log.exception("the part %r broke", name)
            self._errors.setdefault(name, error)
            return None

    def broken(self, name: str) -> bool:
        """Whether the part broke."""
        return name in self._errors

    def finish(self) -> None:
        """Say which parts broke, if any.

        Raises:
            RuntimeError: naming all of them, and why.
        """
        if self._errors:
            reasons = [f"{name}: {type(error).__name__}: {error}" for name, error in self._errors.items()]
            raise RuntimeError("; ".join(reasons)) from next(iter(self._errors.values()))
