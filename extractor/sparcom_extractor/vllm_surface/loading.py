"""vLLM's loader of checkpoints and the models that it loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader as BaseLoader

__all__ = ["BaseLoader", "LoadableModelLike", "packed_modules", "register_model_loader"]


class LoadableModelLike(Protocol):
    """A model of vllm.model_executor.models. sparcom_refusal is ours, set by `CheckedLoader`."""

    sparcom_refusal: str | None

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...


def packed_modules(model: LoadableModelLike) -> Mapping[str, Sequence[str]]:
    """Return the checkpoint's modules that each fused module is made of; {} if the model does not say."""
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    return packed
