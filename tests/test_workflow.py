""".github/workflows/ci.yml: its steps are verbs of the project, and it covers every supported Python."""

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
def test_every_step_is_a_verb_that_exists(step: str) -> None:
    """A target of the Makefile, or a script in .ci/; no logic stands in the workflow."""
    program, *arguments = shlex.split(step)
    if program == "make":
        assert re.search(rf"^{re.escape(arguments[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program.startswith(".ci/")
        assert os.access(ROOT / program, os.X_OK)


def test_all_of_ci_runs() -> None:
    """The jobs together run each script that .ci/run calls."""
    called = re.findall(r"^\.ci/\w+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called
    assert set(called) <= set(STEPS)


def test_every_supported_python_is_tested() -> None:
    """The light tests run on all, the engine on the two oldest; lowest and newest versions of dependencies both."""
    light = JOBS["light"]["strategy"]["matrix"]
    assert light["python"] == SUPPORTED
    assert JOBS["engine"]["strategy"]["matrix"]["python"] == SUPPORTED[:2]
    assert light["resolution"] == ["highest"]
    assert light["include"] == [{"python": SUPPORTED[0], "resolution": "lowest-direct"}]
    low, high = (version.split(".")[1] for version in (SUPPORTED[0], SUPPORTED[-1]))
    assert f"(3, {low}) <= sys.version_info[:2] < (3, {int(high) + 1})" in (ROOT / "scripts" / "setup").read_text()
