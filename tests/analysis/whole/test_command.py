"""`sparcom analyze` as a person calls it, also where torch, vLLM and FastAPI are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparcom_cli.analyze import analyze

BLOCKED = ("torch", "vllm", "fastapi", "transformers", "uvicorn", "scipy", "pandas", "tokenizers")
WITHOUT = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
"""


def run_without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import the blocked packages."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_import_needs_neither_torch_nor_vllm_nor_fastapi() -> None:
    """`import sparcom_analysis` works in an install without them, and does not load matplotlib yet."""
    result = run_without("import sparcom_analysis; print('matplotlib' in sys.modules)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


def test_the_blocker_blocks() -> None:
    """The guard of the test above works."""
    assert "No module named 'torch'" in run_without("import torch").stderr


def test_the_command_works_without_them(typical, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """`sparcom analyze` runs to its end in an install without torch, vLLM and FastAPI, and prints the matrix."""
    code = "from sparcom_cli.main import main; main()"
    result = run_without(code, "analyze", typical.archive.path, "--output", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "random: 8 of 9 instructions, 57 prompt tokens (left out: 1 failed)" in result.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in result.stdout
    matrix = json.loads((tmp_path / "out" / "metrics.json").read_text())["isn_similarity"]["matrix"]
    assert f"QA      {matrix[0][0]:.3f}  {matrix[0][1]:.3f}   {matrix[0][2]:.3f}" in result.stdout
    assert "reading, tokens" in result.stderr


def test_errors_are_one_line_and_status_1(tmp_path: Path) -> None:
    """An archive that is not there is explained on stderr, without a traceback."""
    code = "from sparcom_cli.main import main; main()"
    result = run_without(code, "analyze", str(tmp_path / "none.zarr"), "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "error: there is no archive at" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilon", "0"], "0<x<=1"),
        (["--threshold", "1.5"], "0<x<=1"),
        (["--epsilon", "0.1", "--threshold", "0.5"], "two rules for the same thing"),
        (["--lape-top", "0"], "0<x<=1"),
        (["--lape-bar", "1.1"], "0<x<=1"),
        (["--rows", "some"], "'some' is not one of"),
        (["--tune", "b.zarr"], "No such option"),
    ],
)
def test_wrong_usage_is_status_2(options: list[str], message: str, tmp_path: Path) -> None:
    """Options outside their range are wrong usage, named, before anything is read or written."""
    result = CliRunner().invoke(analyze, ["none.zarr", "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_options_reach_the_analysis(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Threshold, rows and self pairs are what metrics.json says was used."""
    case = make_case((5, 6, 7), ("a", "a", "b"), positions="all", responses=(2, 3, 4))
    arguments = ["--threshold", "0.4", "--rows", "all", "--exclude-self-pairs", "--output", str(tmp_path)]
    result = CliRunner().invoke(analyze, [case.archive.path, *arguments])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "metrics.json").read_text())["settings"]
    assert settings == {
        "rows": "all",
        "selection": "threshold",
        "epsilon": None,
        "threshold": 0.4,
        "exclude_self_pairs": True,
        "special_tokens": "count",
        "counted_tokens": "all",
    }
    assert "prompt and response tokens" in result.output
    assert "n/a" in result.output
