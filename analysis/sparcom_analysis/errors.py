"""Error raised by measures."""

from __future__ import annotations


class NotComputableError(Exception):
    """The measure cannot be computed from these data. The message gives the reason as a sentence for the report."""
