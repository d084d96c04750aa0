"""Threads of torch sleep while they wait, in commands that compute with it, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparcom_cli.shared.threads import wait_asleep


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set stays; what is not becomes passive."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize(
    "command",
    ["model moefy --output x", "model tune --model x --data y --output z", "verify none.zarr --reference transformers"],
)
def test_it_is_said_before_torch_is_there(command: str) -> None:
    """OpenMP reads it once, when torch is loaded: each command says it first, and its module loads no torch."""
    module, *arguments = command.split()
    code = f"""
import sys, sparcom_cli.shared.threads as threads
def note(): raise SystemExit("torch" in sys.modules and 9 or 5)
threads.wait_asleep = note
from sparcom_cli.{module} import {module} as command
command({arguments!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 5
