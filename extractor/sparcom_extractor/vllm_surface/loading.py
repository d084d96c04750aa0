"""vLLM's loader of checkpoints and the models that it loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader as BaseLoader

__all__ = ["BaseLoader", "LoadableModel", "packed_modules", "register_model_loader"]


class LoadableModel(Protocol):
    """A model of `vllm.model_executor.models`."""

    sparcom_refusal: str | None  # ours, set by `CheckedLoader`

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and tensor of each parameter, as vLLM names them."""


def packed_modules(model: LoadableModel) -> Mapping[str, Sequence[str]]:
    """Return vLLM's fused modules and those of the checkpoint that each is made of; {} for models without."""
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    return packed
