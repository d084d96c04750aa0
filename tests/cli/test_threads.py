"""Idle threads of torch sleep in commands that compute with it, unless the user chose a policy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparcom_cli.shared.threads import wait_asleep


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that is set stays; the default becomes passive."""
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
def test_the_policy_is_set_before_torch_is_imported(command: str) -> None:
    """OpenMP reads the policy when torch is imported: each command sets it first, and its module imports no torch."""
    module, *arguments = command.split()
    code = f"""
import sys, sparcom_cli.shared.threads as threads
def note(): raise SystemExit("torch" in sys.modules and 9 or 5)
threads.wait_asleep = note
from sparcom_cli.{module} import {module} as command
command({arguments!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 5
