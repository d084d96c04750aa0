"""Load a checkpoint through vLLM, and refuse one that leaves parameters unwritten.

vLLM considers a fused parameter (`gate_up_proj`, `qkv_proj`, `w13`) loaded once any part of it was loaded, and does not
check linear layers at all. `CheckedLoader` runs vLLM's loader under a `WriteWatch`. The worker process registers it
as a load format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparcom_extractor.launch.bootstrap import SubprocessBootstrap
from sparcom_extractor.vllm_surface.config import VllmConfigLike
from sparcom_extractor.vllm_surface.loading import BaseLoader, LoadableModelLike, register_model_loader
from sparcom_extractor.worker.writes import WriteWatch

LOAD_FORMAT = "sparcom"
SHOWN_NAMES = 5


@register_model_loader(LOAD_FORMAT)
class CheckedLoader(BaseLoader):  # type: ignore[misc]
    """vLLM's default loader, which also refuses checkpoints that leave parameters unwritten."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(replace(load_config, load_format="auto"))
        self._watch = WriteWatch()
        self._watching = ExitStack()
        self._unreadable = False

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Build and load the model; watch writes until the weights are loaded."""
        with self._watching:
            self._watching.enter_context(self._watch)
            return super().load_model(*args, **kwargs)

    def get_all_weights(self, model_config: Any, model: LoadableModelLike) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and tensor of everything in the checkpoint."""
        try:
            for name, tensor in super().get_all_weights(model_config, model):
                self._watch.source = name
                yield name, tensor
        except Exception:
            self._unreadable = True  # errors of the code that consumes the tensors do not pass through here
            raise
        self._watch.source = ""

    def load_weights(self, model: LoadableModelLike, model_config: Any) -> None:
        """Load the checkpoint and set the model's `sparcom_refusal`. An exception would reach the user below 150 lines
        of vLLM's tracebacks."""
        failure: Exception | None = None
        try:
            super().load_weights(model, model_config)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001  models may raise anything: KeyError, AssertionError without a message
            failure = error
        self._watching.close()
        model.sparcom_refusal = self._refuse(model, failure)

    def _refuse(self, model: LoadableModelLike, failure: Exception | None) -> str | None:
        """Return what is wrong with the checkpoint, or None."""
        reason = f"{type(failure).__name__}: {str(failure).rstrip('.')}" if str(failure) else "its shape differs"
        if failure is not None and not self._unreadable and self._watch.source:
            return (
                f"the checkpoint's tensor {self._watch.source} does not fit the model that config.json describes: "
                f"{reason}. Check that config.json and the weights belong together"
            )
        packed = getattr(model, "packed_modules_mapping", {})
        missing = [] if self._unreadable else self._watch.missing(model.named_parameters(), packed)
        if missing:
            more = f" and {len(missing) - SHOWN_NAMES} more" if len(missing) > SHOWN_NAMES else ""
            return (
                f"the checkpoint lacks {', '.join(missing[:SHOWN_NAMES])}{more}; vLLM would run with uninitialized "
                "memory there. Complete the checkpoint, or fetch the model again"
            )
        if failure is not None:
            return f"vLLM cannot load the checkpoint: {reason}. Complete the checkpoint, or fetch the model again"
        return None


@contextmanager
def checked_loading(config: VllmConfigLike) -> Iterator[None]:
    """Load with `CheckedLoader` where vLLM would read a checkpoint, and report exceptions to the parent process.
    Changes `config`, the worker's own copy."""
    if config.load_config.load_format == "auto":
        config.load_config.load_format = LOAD_FORMAT
    try:
        yield
    except Exception as error:
        bootstrap = config.additional_config
        if isinstance(bootstrap, SubprocessBootstrap) and bootstrap.report:
            Path(bootstrap.report).write_text(f"{type(error).__name__}: {error}")
        raise
