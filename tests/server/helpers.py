"""Helpers of several tests: files of a folder, message of an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(response: Any) -> str:
    """Return the message of an error response."""
    return str(response.json()["detail"])


def problem_of(response: Any) -> str:
    """Return the name of an error response: the last part of its type."""
    assert response.headers["Content-Type"] == "application/problem+json"
    return str(response.json()["type"]).removeprefix("urn:sparcom:problem:")
