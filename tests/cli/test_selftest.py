"""`sparcom selftest`: its exit status is 1 where a check fails, and the report is where it was asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_verification.selftest.process import Outcome
from sparcom_verification.selftest.results import Check, Measure

GOOD = Check("bits", "one and the other", 100, 0)
BAD = Check("bits", "one and the other", 100, 1)
SLOW = Measure("ratio", 0.5, "", goal=0.98)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", "selftest", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.torch
def test_a_device_that_is_not_there_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU nothing is begun or written: one sentence with what to do."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(monkeypatch, "--device", "cuda", "--output", tmp_path / "report.json") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --device cuda needs a GPU that torch can use")
    assert "Use --device cpu" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "outcome", "status", "last"),
    [
        ([GOOD], Outcome(), 0, "passed: 1 checks hold"),
        ([GOOD, SLOW], Outcome(), 0, "passed: 1 checks hold"),
        ([GOOD, BAD], Outcome(), 1, "FAILED: machine"),
        ([GOOD], Outcome("its process ended with status 3"), 1, "FAILED: machine"),
    ],
)
def test_the_exit_status_is_that_of_the_checks(
    rows: list[Any],
    outcome: Outcome,
    status: int,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A check that fails or a step that breaks is 1; a speed below its goal is not."""

    def step(_step: Any, _folder: Path, _device: str, _seconds: float, tell: Any, _stop: Any) -> Outcome:
        for row in rows:
            tell(row)
        return outcome

    monkeypatch.setattr("sparcom_verification.selftest.run.run_step", step)
    output = tmp_path / "report.json"
    assert run(monkeypatch, "--device", "cpu", "--only", "machine", "--output", output) == status
    said = capsys.readouterr().out
    assert said.rstrip().endswith(last)
    assert "machine: running" in said
    assert json.loads(output.read_text())["verdict"] == last


def test_the_device_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed: a GPU machine must not be tested on its CPU by mistake."""
    assert run(monkeypatch) == 2
    assert run(monkeypatch, "--device", "tpu") == 2
    assert run(monkeypatch, "--device", "cpu", "--minutes", "0") == 2


@pytest.mark.engine
def test_one_lane_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is made, captured all ways by one engine, and held against transformers: every check holds."""
    output = tmp_path / "report.json"
    only = ("--only", "machine", "--only", "llama float32: transformers")
    status = run(monkeypatch, "--device", "cpu", "--minutes", "8", "--output", output, *only)
    report = json.loads(output.read_text())
    assert status == 0, report
    steps = {step["name"]: step for step in report["steps"]}
    assert {step["status"] for step in steps.values()} == {"done"}
    capture = [row for row in steps["llama float32: capture"]["rows"] if row["kind"] == "check"]
    assert len(capture) == 8
    assert all(row["total"] for row in capture)
    (bits, rounding) = [row for row in steps["llama float32: transformers"]["rows"] if row["kind"] == "check"]
    assert bits["total"] > 100_000
    assert rounding["differing"] == 0
    assert "torch" in report["facts"]
    assert report["verdict"] == "passed: 10 checks hold"


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_the_self_test_passes_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, tokens and masks hold on the GPU at hand, in compiled graphs; its report is kept beside the test's."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    output = tmp_path / "report.json"
    only = ("--only", "kernels", "--only", "float32", "--only", "bfloat16")
    status = run(monkeypatch, "--device", "cuda", "--minutes", "12", "--output", output, *only)
    assert status == 0, json.loads(output.read_text())
