"""vLLM's checkpoint loader and the models that it loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader as BaseLoader

__all__ = ["BaseLoader", "LoadableModelLike", "register_model_loader"]


class LoadableModelLike(Protocol):
    """A model of vllm.model_executor.models. sparcom_refusal is ours, set by `CheckedLoader`."""

    sparcom_refusal: str | None
    packed_modules_mapping: Mapping[str, Sequence[str]]  # checkpoint modules per fused module; some models lack it

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...
