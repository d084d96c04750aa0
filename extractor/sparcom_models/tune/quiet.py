"""Arithmetic that repeats, and libraries that keep silent, for as long as a block runs; then all is as it was."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log and Python's warnings from the user: they speak to whoever wrote the loop."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def repeatable() -> Iterator[None]:
    """Let torch take only algorithms that give the same sums again, and leave the caller's random numbers untouched.

    Without it, adding up the gradients of chosen rows (experts' tokens) is in the order in which threads arrive. On
    CUDA an operation that has no such algorithm runs all the same: a mixture of experts needs some.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    choice: Any = torch.utils.deterministic
    filling = choice.fill_uninitialized_memory
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the Trainer seeds this one)
    torch.use_deterministic_algorithms(True, warn_only=cuda)
    choice.fill_uninitialized_memory = False  # finds faults of torch, and takes 2 to 10 % of a step
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        choice.fill_uninitialized_memory = filling
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
