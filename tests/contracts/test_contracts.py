"""Our assumptions about vLLM hold in the sources of every supported version, without a device.

Each version runs the same tests, in `inside/`, in a process of its own. The installed vLLM runs on its own platform.
The GPU wheels run on a pretended Hopper GPU. `.ci/contracts` fetches them; without them their tests are skipped by
name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_wheel import ROOT, VERSIONS, schemas_of, site

INSIDE = Path(__file__).parent / "inside"
# Tests of the ordinary suite that run with vLLM's own classes.
LATER = {"0.24.0": "not SituAndMul"}  # classes that came later
SHARED = ("capture/test_rows.py", "capture/ops/test_experts_triton.py", "capture/discovery/test_activations.py")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("version", ["installed", *VERSIONS])
def test_contracts(version: str) -> None:
    """Every contract test passes with this version of vLLM."""
    environment, plugin = os.environ | {"HF_HUB_OFFLINE": "1"}, []
    if version != "installed":
        if not site(version).exists():
            pytest.skip(f"needs the GPU wheel of vLLM {version}: .ci/contracts fetches it")
        paths = [str(site(version)), str(INSIDE), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        plugin = ["-p", "fake_hopper"]
    shared = [str(ROOT / "tests" / "extractor" / name) for name in SHARED]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *plugin, "-p", "no:cacheprovider", "-o", "filterwarnings="]
    command += ["-o", "python_files=check_*.py test_*.py", "-k", LATER.get(version, ""), "--strict-skips"]
    command += [str(INSIDE), *shared]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_schemas() -> None:
    """Schemas next to each other and over several lines are found; other text is not."""
    library = b"\0a(Tensor x) -> ()\0b.out(Tensor! y,\n   int n) -> Tensor\0not (a) schema\0c() -> int"
    assert schemas_of(library) == ["a(Tensor x) -> ()", "b.out(Tensor! y, int n) -> Tensor"]
