"""Loads a checkpoint through vLLM and refuses one that does not fill the model.

vLLM takes a fused parameter (`gate_up_proj`, `qkv_proj`, `w13`) for loaded when any part of it was, and does not look
at linear layers at all. Our loader is vLLM's own with `WriteWatch` around it. The worker process registers it under a
name of its own; the rest of vLLM stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from sparcom_extractor.launch.bootstrap import SubprocessBootstrap
from sparcom_extractor.worker.writes import WriteWatch

LOAD_FORMAT = "sparcom"
SHOWN_NAMES = 5


@register_model_loader(LOAD_FORMAT)
class CheckedLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader of checkpoints, which refuses those that leave memory unwritten."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(replace(load_config, load_format="auto"))
        self._watch = WriteWatch()
        self._watching = ExitStack()
        self._unreadable = False

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Build the model and load it, watched until the weights are there."""
        with self._watching:
            self._watching.enter_context(self._watch)
            return super().load_model(*args, **kwargs)

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of everything in the checkpoint."""
        try:
            for name, tensor in super().get_all_weights(model_config, model):
                self._watch.source = name
                yield name, tensor
        except Exception:
            self._unreadable = True  # an error of who takes the tensors does not come by here
            raise
        self._watch.source = ""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Load the checkpoint into the model; what is wrong with it becomes the model's `sparcom_refusal`, or None.

        An exception would end the worker, and reach the user below 150 lines of vLLM's tracebacks.
        """
        failure: Exception | None = None
        try:
            super().load_weights(model, model_config)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001  models raise what they like: KeyError, AssertionError without words
            failure = error
        self._watching.close()
        model.sparcom_refusal = self._refusal(model, failure)

    def _refusal(self, model: Any, failure: Exception | None) -> str | None:
        """What is wrong with the checkpoint, or None."""
        reason = f"{type(failure).__name__}: {str(failure).rstrip('.')}" if str(failure) else "its shape is another"
        if failure is not None and not self._unreadable and self._watch.source:
            return (
                f"the checkpoint's tensor {self._watch.source} does not fit the model that config.json describes: "
                f"{reason}. Check that config.json and the weights belong together"
            )
        packed = getattr(model, "packed_modules_mapping", {})
        if not self._unreadable and (names := self._watch.missing(model.named_parameters(), packed)):
            return lacking(names)
        if failure is not None:
            return f"vLLM cannot load the checkpoint: {reason}. Complete the checkpoint, or fetch the model again"
        return None


def lacking(names: Sequence[str]) -> str:
    """The sentence for a checkpoint that lacks these tensors."""
    shown = ", ".join(names[:SHOWN_NAMES])
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return (
        f"the checkpoint lacks {shown}{more}, and vLLM would run with what memory happens to hold there. Complete the "
        "checkpoint, or fetch the model again"
    )


@contextmanager
def checked_loading(config: Any) -> Iterator[None]:
    """Load with `CheckedLoader` where vLLM would read a checkpoint, and report an exception to the parent.

    Args:
        config: the worker's own copy of vLLM's configuration.
    """
    if config.load_config.load_format == "auto":
        config.load_config.load_format = LOAD_FORMAT
    try:
        yield
    except Exception as error:
        note = config.additional_config
        if isinstance(note, SubprocessBootstrap) and note.report:
            Path(note.report).write_text(f"{type(error).__name__}: {error}")
        raise
