"""vLLM, imported without its warnings."""

from __future__ import annotations

import importlib
import warnings

import pytest


@pytest.fixture(scope="session")
def quiet_vllm() -> None:
    """Import vLLM once, without its warnings. Takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("vllm.v1.engine.exceptions", "vllm.sampling_params"):
            importlib.import_module(name)
