"""`sparcom model tune` passes its options on and reports the result."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparcom_cli.model import model as model_command
from sparcom_cli.model.steps import Steps
from sparcom_data.errors import InvalidInputError
from sparcom_models import make_tiny_model
from sparcom_models.testing import write_small_tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread: spinning threads are ten times slower beside another busy process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(model_command, ["tune", *map(str, arguments)], catch_exceptions=False)


def test_the_command_makes_a_tuned_model_and_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports steps, losses before and after, tokens, weight changes, truncation, and texts of both models. The
    second time, there is nothing to do."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # else the command sets it permanently
    base = make_tiny_model("llama", tmp_path / "base", tokenizer=write_small_tokenizer(tmp_path)).path
    lines = [{"id": str(n), "text": " ".join("ABCDEFGHIJKLMNOPQRSTUVWX"[n % 9 :])} for n in range(20)]
    lines.append({"id": "one token", "text": "A"})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"learning-rate": 0.001, "epochs": 2, "batch-size": 6, "max-length": 20, "held-out": 0.2, "seed": 3}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    arguments = ["--model", base, "--data", tmp_path / "in.jsonl", "--output", tmp_path / "m", *flags]
    printed = invoke(*arguments).stdout
    assert printed.startswith(f"Made {tmp_path / 'm'} (16 instructions, 6 steps; loss from ")
    assert "on 4 test instructions)\n" in printed
    assert "tokens trained on; " in printed
    assert "of the weights differ from the base; relative L2 distance" in printed
    assert "instructions were truncated to --max-length" in printed
    assert "1 instructions were left out: no token to predict" in printed
    assert "\nThe capital of France is\n  base:  " in printed
    source = json.loads((tmp_path / "m" / "SOURCE.json").read_text())
    assert {name.replace("-", "_"): value for name, value in options.items()}.items() <= source.items()
    assert invoke(*arguments).stdout.startswith(f"Nothing to do: {tmp_path / 'm'} (16 instructions")


def test_settings_that_break_a_rule_are_refused(tmp_path: Path) -> None:
    """Settings are checked before the model is loaded."""
    with pytest.raises(InvalidInputError, match="held_out: must lie between 0 and 1"):
        invoke("--model", tmp_path, "--data", tmp_path / "in.jsonl", "--held-out", "1")


def test_a_note_follows_its_step() -> None:
    """Each step has one line with count, total and note."""
    from rich.console import Console
    from rich.progress import Progress

    bars = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    steps = Steps(bars)
    steps("loading")
    for done in range(3):
        steps("training", done, 40, note=f"loss {4 - done}.000" if done else "")
    steps("writing")
    bars.stop()
    shown = [f"{task.description}{task.fields['note']}".split(",") for task in bars.tasks]
    assert [parts[0] for parts in shown] == ["loading", "training 2 of 40", "writing"]
    assert "loss 2.000" in shown[1][1]
