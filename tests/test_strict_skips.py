"""With --strict-skips a skipped test fails, unless CI cannot provide its requirement."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="no Chromium or Chrome is installed")
def test_marked():
    pass

def test_called():
    pytest.skip("the demo model is not on disk")

@pytest.fixture
def absent():
    pytest.importorskip("no_such_module")

def test_by_its_fixture(absent):
    pass

@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    assert False

def test_gpu():
    pytest.skip("needs a CUDA device, and this machine has none")

def test_natural():
    pytest.skip("no natural instructions are at hand: SPARCOM_NATURAL names a folder with them")
"""


def outcomes(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Run pytest in two processes, as `make test` does; return exit status and summary lines."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "-q", "-rA", "-p", "no:cacheprovider", *options, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with this conftest, skipped tests, and a skipped module."""
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_few.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_library')\n")
    return tmp_path


def test_a_skip_fails_in_ci(project: Path) -> None:
    """Skips by mark, call, fixture and module fail with their reason, except those that CI cannot avoid."""
    status, lines = outcomes(project, "--strict-skips")
    assert status == 1
    text = "\n".join(lines)
    assert "1 failed, 1 passed, 2 skipped, 1 xfailed, 3 errors" in text, "a failed set-up is an error"
    for reason in (
        "no Chromium or Chrome is installed",
        "the demo model is not on disk",
        "could not import 'no_such_module'",
        "could not import 'no_such_library'",
    ):
        assert f"--strict-skips allows no skip for this reason: Skipped: {reason}" in text


def test_without_the_option_a_skip_is_a_skip(project: Path) -> None:
    """Without the option, nothing changes."""
    status, lines = outcomes(project)
    assert status == 0
    assert "1 passed, 6 skipped, 1 xfailed" in lines[-1]


@pytest.mark.torch
def test_gpu_tests_need_neither_plugins_nor_other_tests() -> None:
    """On a GPU machine with pytest alone, `-m gpu` imports only `tests/gpu`, and knows the mark and the setting of
    pytest-timeout."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "--collect-only",
        "-q",
        "-p",
        "no:timeout",
        "-p",
        "no:xdist",
    ]
    done = subprocess.run(command, cwd=CONFTEST.parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(collected) > 100
    assert all(line.startswith("tests/gpu/") for line in collected)
    assert "(5 deselected)" in done.stdout.splitlines()[-1], "only tests/gpu/test_comparison.py was also imported"
