"""`sparcom selftest`: exit status 1 if a check fails; a missing device is refused before any work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data.verify import Check


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", "selftest", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.torch
def test_a_missing_device_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU, nothing is created, and one sentence names the remedy."""
    monkeypatch.setattr("vllm.platforms.current_platform.device_type", "cpu")
    assert run(monkeypatch, "--device", "cuda", "--folder", tmp_path / "work") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --device must be vLLM's device on this machine, cpu; it is cuda")
    assert "Use --device cpu" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
@pytest.mark.parametrize(
    ("findings", "unexplained", "status", "last"),
    [([], 0, 0, "passed"), (["1 of 9 tokens differ"], 0, 1, "FAILED: 1 findings"), ([], 2, 1, "FAILED: 1 findings")],
)
def test_the_exit_status_is_that_of_the_checks(
    findings: list[str],
    unexplained: int,
    status: int,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Differing tokens and unexplained bits both give exit status 1."""
    from sparcom_verification.reference.comparison import MaskComparison  # needs torch

    async def selftest(folder: Path, *, moe: bool) -> Any:
        assert (folder, moe) == (tmp_path / "work", True)
        return [Check("tokens", "9 values", findings)], MaskComparison(bits=100, unexplained=unexplained)

    monkeypatch.setattr("sparcom_verification.selftest.run_selftest", selftest)
    assert run(monkeypatch, "--device", "cpu", "--moe", "--folder", tmp_path / "work") == status
    printed = capsys.readouterr().out
    assert "100 bits against transformers" in printed
    assert printed.rstrip().endswith(last)


def test_the_device_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """--device is required, so that a GPU machine is not tested on its CPU by mistake."""
    assert run(monkeypatch) == 2
    assert run(monkeypatch, "--device", "tpu") == 2


@pytest.mark.torch
def test_a_used_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A non-empty folder is refused, since old files could be mistaken for new ones."""
    (tmp_path / "something").touch()
    assert run(monkeypatch, "--device", "cpu", "--folder", tmp_path) == 1
    assert "folder must be new or empty" in capsys.readouterr().err
