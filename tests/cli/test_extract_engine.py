"""`sparcom extract` as users run it, with a real engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparcom_data.archive import open_archive
from sparcom_data.instructions.files import read_instructions

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "instructions.jsonl"
UNSET = ("VLLM_LOGGING_LEVEL", "PYTHONWARNINGS")


@pytest.mark.engine
@pytest.mark.slow
def test_only_useful_lines_are_printed(tmp_path: Path) -> None:
    """With the repository's example on standard input, three lines are printed, and none of vLLM's warnings.

    Every process imports Numba before vLLM scans its modules, like a program that imports the analysis.
    """
    from sparcom_models import make_tiny_model

    (tmp_path / "sitecustomize.py").write_text("import numba\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    tokenizer = ROOT / "models" / "smollm2-135m-instruct"
    make_tiny_model("llama", tmp_path / "tiny", tokenizer=tokenizer)
    command = [sys.executable, "-m", "sparcom_cli", "extract", "--input", "-", "--kv-cache-gib", "0.25"]
    done = subprocess.run(
        [*command, "--model", tmp_path / "tiny", "--output", tmp_path / "a.zarr"],
        input=EXAMPLE.read_text(),
        env={name: value for name, value in os.environ.items() if name not in UNSET} | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert len(done.stderr.splitlines()) == 2, done.stderr
    loading, bar = done.stderr.splitlines()
    assert (done.returncode, loading) == (0, "Loading tiny ...")
    assert bar.startswith("Extracting ")
    assert done.stdout.startswith(f"{tmp_path / 'a.zarr'}: 12 of 12 instructions complete")
    assert open_archive(tmp_path / "a.zarr").instructions.id == [item.id for item in read_instructions(EXAMPLE)]
