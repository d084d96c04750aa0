"""Put this folder on the path: tests share `stand_in`, and an engine's processes import `faulty_worker` by name."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def quiet_vllm() -> None:
    """Import vLLM once, without its warnings. Takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("vllm.v1.engine.exceptions", "vllm.sampling_params"):
            importlib.import_module(name)
