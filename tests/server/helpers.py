"""Helpers of several tests: the files of a folder, the message of an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(response: Any) -> str:
    """The message of an error response."""
    return str(response.json()["error"]["message"])
