"""Torch's idle threads sleep in commands that use torch, unless the user chose a policy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparcom_cli.shared.threads import wait_asleep


def test_a_policy_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy set by the user is kept; the default is passive."""
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
    """OpenMP reads the policy at torch's import, so each command sets it first, and no command module imports torch."""
    module, *arguments = command.split()
    code = f"""
import sys, sparcom_cli.shared.threads as threads
def note(): raise SystemExit("torch" in sys.modules and 9 or 5)
threads.wait_asleep = note
from sparcom_cli.{module} import {module} as command
command({arguments!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 5
