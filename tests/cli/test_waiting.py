"""Waits are shown on terminals and in logs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from sparcom_cli.model.steps import Steps
from sparcom_cli.shared.waiting import waiting


def test_a_log_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets the line before the wait begins, and nothing else."""
    with waiting("Loading a model"):
        assert capsys.readouterr().err == "Loading a model ...\n"
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_spinner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The text is drawn, and erased at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with waiting("Loading a model"):
        pass
    said = capsys.readouterr().err
    assert "Loading a model" in said
    assert "Loading a model ..." not in said
    assert "\x1b[2K" in said, "the line is erased"


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_shown_when_they_begin(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step is one line without a terminal, and one bar with a terminal."""
    drawn = io.StringIO()
    bars = Progress(TextColumn("{task.description}"), console=Console(file=drawn, force_terminal=terminal))
    steps = Steps(bars)
    steps("training", 0, 15)
    steps("training", 1, 15, note="loss 4.1")
    steps("writing")
    if terminal:
        bars.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([] if terminal else ["training ...", "writing ..."])
    assert ("training" in drawn.getvalue()) is terminal
