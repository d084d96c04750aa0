""".github/workflows/ci.yml: each step is a target of the Makefile or a script, and every supported Python is
covered.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
STEPS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_a_target_or_a_script(step: str) -> None:
    """Each step is a target of the Makefile or a script in .ci/; the workflow has no logic of its own."""
    program, *arguments = shlex.split(step)
    if program == "make":
        assert re.search(rf"^{re.escape(arguments[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program.startswith(".ci/")
        assert os.access(ROOT / program, os.X_OK)


def test_all_of_ci_runs() -> None:
    """Together, the jobs run each script that .ci/run calls."""
    called = re.findall(r"^\.ci/\w+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called
    assert set(called) <= set(STEPS)


def test_every_supported_python_is_tested() -> None:
    """Light tests run on all versions, the engine on the two oldest, both with lowest and with newest dependencies."""
    light = JOBS["light"]["strategy"]["matrix"]
    assert light["python"] == SUPPORTED
    assert JOBS["engine"]["strategy"]["matrix"]["python"] == SUPPORTED[:2]
    assert light["resolution"] == ["highest"]
    assert light["include"] == [{"python": SUPPORTED[0], "resolution": "lowest-direct"}]
    low, high = (version.split(".")[1] for version in (SUPPORTED[0], SUPPORTED[-1]))
    assert f"(3, {low}) <= sys.version_info[:2] < (3, {int(high) + 1})" in (ROOT / "scripts" / "setup").read_text()
