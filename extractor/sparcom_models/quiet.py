"""Context managers for transformers and torch: no progress bars, no warnings, deterministic arithmetic."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars, which would overwrite ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def hide_messages() -> Iterator[None]:
    """Hide transformers' log below ERROR, its progress bars, and Python's warnings: users cannot act on them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with hide_progress_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def deterministic() -> Iterator[None]:
    """Restrict torch to deterministic algorithms; restore the caller's settings and random states afterwards.

    Otherwise the gradients of experts' rows are summed in thread order. CUDA still runs operations that have no
    deterministic algorithm, since MoE models need some.
    """
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it to be deterministic
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the Trainer seeds this one)
    torch.use_deterministic_algorithms(True, warn_only=cuda)
    debugging.fill_uninitialized_memory = False  # only helps to debug torch; costs 2 to 10 % of a step
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        debugging.fill_uninitialized_memory = fill
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
