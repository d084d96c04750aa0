"""The scripts in examples/ run unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES.parent / "models" / "smollm2-135m-instruct"


def run(name: str, *arguments: object) -> str:
    """Run an example; return what it printed."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny random model."""
    from sparcom_models import make_tiny_model

    make_tiny_model("llama", tmp_path / "tiny", tokenizer=MODEL)
    return tmp_path / "tiny"


@pytest.mark.engine
@pytest.mark.slow
def test_extract(tmp_path: Path, tiny: Path) -> None:
    """The archive is complete."""
    shown = run("extract.py", tiny, EXAMPLES / "instructions.jsonl", tmp_path / "run.zarr")
    assert "12 of 12 instructions" in shown
    assert set(open_archive(tmp_path / "run.zarr").instructions.state) == {1}


@pytest.mark.engine
@pytest.mark.slow
def test_serve_and_submit(tmp_path: Path, tiny: Path) -> None:
    """The job completes, the masks are read over HTTP, and the server is stopped."""
    shown = run("serve_and_submit.py", tiny, EXAMPLES / "instructions.jsonl", tmp_path / "data")
    assert "complete: 12 of 12 instructions" in shown
    assert "masks: (" in shown


def test_read_in_a_notebook(tmp_path: Path) -> None:
    """The figure is written, from an archive of random masks."""
    write_random_archive(tmp_path / "run.zarr", per_category=4)
    shown = run("read_in_a_notebook.py", tmp_path / "run.zarr", tmp_path / "similarity.pdf")
    assert "ISNs" in shown
    assert (tmp_path / "similarity.pdf").stat().st_size > 0
