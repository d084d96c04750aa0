"""The error that all measures share."""

from __future__ import annotations


class NotComputableError(Exception):
    """This measure cannot be had of these data. The message says why, in a sentence for the report."""
