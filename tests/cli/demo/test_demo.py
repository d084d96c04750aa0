"""`sparcom demo` empties only folders of its own, and always stops its server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparcom_cli import demo
from sparcom_cli.demo import server as demo_server
from sparcom_cli.main import main
from sparcom_data.errors import EngineError
from sparcom_data.instructions import read_jsonl


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", "demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that records the commands of the demo instead of running them."""
    ran: list[str] = []

    @contextmanager
    def server(models: Sequence[Path], output: Path, log: str) -> Iterator[str]:
        ran.append(" ".join(["serve", *(model.name for model in models)]))
        try:
            yield "http://here"
        finally:
            ran.append("stop")

    monkeypatch.setattr(demo, "_sparcom", lambda *arguments: ran.append(described(arguments)))
    monkeypatch.setattr(demo, "serving", server)

    def page(output: Path, *reports: Path, tuned_here: bool) -> tuple[Path, str]:
        ran.append(f"page {tuned_here}")
        return output / "index.html", " ".join(["alteration", *(report.name for report in reports)])

    monkeypatch.setattr(demo, "write_comparison", page)
    return ran


def described(arguments: Sequence[str | Path]) -> str:
    """Return a command's first word and the last part of each path in it."""
    arguments = list(map(str, arguments))
    endings = (".zarr", "-moe", "instruct", "report", ".jsonl", "-tuned")
    named = [word for word in arguments if (word.endswith(endings) and not word.startswith("--")) or word == "demo"]
    return " ".join([str(arguments[0]), *dict.fromkeys(Path(word).name for word in named)])


DENSE, MOE = "smollm2-135m-instruct", "smollm2-135m-instruct-moe"
BUILT, TRAINING = "dataset instructions.jsonl", "dataset training.jsonl"


def made(dense: str, moe: str) -> list[str]:
    return [
        f"model {dense} {moe}",
        f"model {dense} training.jsonl {dense}-tuned",
        f"model {moe} training.jsonl {moe}-tuned",
    ]


def served(dense: str, moe: str) -> list[str]:
    return [
        f"serve {dense} {dense}-tuned",
        f"submit {dense} instructions.jsonl demo",
        f"submit {dense}-tuned instructions.jsonl demo-tuned",
        "stop",
        f"serve {moe} {moe}-tuned",
        f"submit {moe} instructions.jsonl demo-moe",
        f"submit {moe}-tuned instructions.jsonl demo-moe-tuned",
        "stop",
        "verify demo.zarr demo-tuned.zarr demo-moe.zarr demo-moe-tuned.zarr",
        "analyze demo.zarr demo-tuned.zarr report",
        "analyze demo-moe.zarr demo-moe-tuned.zarr report-moe",
    ]


def alone(dense: str) -> list[str]:
    run_it = [f"serve {dense}", f"submit {dense} instructions.jsonl demo", "stop"]
    return [*run_it, "verify demo.zarr", "analyze demo.zarr report"]


def test_the_demo_runs_one_model(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetch, serve, submit, stop, verify, analyze; nothing is trained. The path of the report is printed at the end. A
    second run empties the folder of the first."""
    for _ in range(2):
        steps.clear()
        assert run(monkeypatch, "--output", tmp_path / "out") == 0
        assert steps == [BUILT, f"model {DENSE}", *alone(DENSE)]
        said = capsys.readouterr().out
        assert "\nDone in " in said
        assert f"Open {tmp_path / 'out' / 'report' / 'report.html'}" in said
        assert not (tmp_path / "out" / "old").exists()
        (tmp_path / "out" / "old").touch()
    steps.clear()
    assert run(monkeypatch, "--output", tmp_path / "out", "--model", "models/x-instruct") == 0
    assert steps == [BUILT, *alone("x-instruct")], "a given model is not fetched"


def test_the_demo_with_experts_compares_four_models(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetch one model, make the other three, serve and submit to each pair, verify all, analyze each pair, write the
    comparison page.
    """
    assert run(monkeypatch, "--moe", "--output", tmp_path / "out") == 0
    assert steps == [BUILT, f"model {DENSE}", TRAINING, *made(DENSE, MOE), *served(DENSE, MOE), "page True"]
    said = capsys.readouterr().out
    assert "\nalteration report report-moe\n\nDone in " in said
    assert f"Open {tmp_path / 'out' / 'index.html'}" in said
    steps.clear()
    assert run(monkeypatch, "--moe", "--output", tmp_path / "out", "--model", "models/x-instruct") == 0
    made_of = [*made("x-instruct", "x-instruct-moe"), *served("x-instruct", "x-instruct-moe"), "page True"]
    assert steps == [BUILT, TRAINING, *made_of], "not fetched, but moefied and tuned"


@pytest.mark.parametrize("option", ["--moe-model", "--tuned-model", "--moe-tuned-model"])
def test_unused_models_are_refused(
    option: str, tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model folder for the comparison, without --moe, is wrong usage."""
    assert run(monkeypatch, "--output", tmp_path / "out", option, tmp_path) == 2
    assert "need --moe" in capsys.readouterr().err
    assert steps == []


def test_training_instructions_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No training instruction is among those on which the models are compared."""
    ran: list[tuple[str | Path, ...]] = []
    monkeypatch.setattr(demo, "_sparcom", lambda *arguments: ran.append(arguments))
    demo._build(tmp_path / "instructions.jsonl")
    demo._build(tmp_path / "training.jsonl", "--skip", str(demo.PER_CATEGORY))
    monkeypatch.undo()
    for arguments in ran:
        monkeypatch.setattr(sys, "argv", ["sparcom", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    files = [read_jsonl(tmp_path / f"{name}.jsonl") for name in ("instructions", "training")]
    assert [len(items) for items in files] == [6 * demo.PER_CATEGORY] * 2
    assert not {item.id for item in files[0]} & {item.id for item in files[1]}


def test_models_that_are_given_are_not_made(tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With all folders given, nothing is trained and no model is made."""
    models = ("--model", tmp_path / "d-instruct", "--moe-model", tmp_path / "m-moe")
    tuned = ("--tuned-model", tmp_path / "d-instruct-tuned", "--moe-tuned-model", tmp_path / "m-moe-tuned")
    assert run(monkeypatch, "--moe", "--output", tmp_path / "out", *models, *tuned) == 0
    assert steps == [BUILT, *served("d-instruct", "m-moe"), "page False"]


PAIRS = [("--model", "--moe-model"), ("--model", "--tuned-model"), ("--moe-model", "--moe-tuned-model")]


@pytest.mark.parametrize("same", PAIRS)
def test_models_of_the_same_name_are_refused(
    same: tuple[str, str],
    tmp_path: Path,
    steps: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server names models by the last part of their paths, so these must differ."""
    arguments = (same[0], tmp_path / "a" / "x", same[1], tmp_path / "b" / "x")
    assert run(monkeypatch, "--moe", "--output", tmp_path / "out", *arguments) == 1
    assert "which must differ" in capsys.readouterr().err
    assert steps == []


def test_a_foreign_folder_is_left_alone(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with other files, and a file, are refused before anything runs."""
    (tmp_path / "precious").write_text("mine")
    assert run(monkeypatch, "--output", tmp_path) == 1
    assert "holds other files. Choose another --output" in capsys.readouterr().err
    assert run(monkeypatch, "--output", tmp_path / "precious") == 1
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"
    assert steps == []


@pytest.mark.parametrize("broken", ["submit", "verify"])
def test_a_step_that_fails_ends_the_demo(
    broken: str, tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo exits with the status of the failed step, runs nothing after it, and stops the server."""

    def fail(*arguments: str) -> None:
        steps.append(arguments[0])
        if arguments[0] == broken:
            raise SystemExit(7)

    monkeypatch.setattr(demo, "_sparcom", fail)
    assert run(monkeypatch, "--moe", "--output", tmp_path / "out") == 7
    assert steps.count(broken) == 1
    served_pair = ["serve smollm2-135m-instruct smollm2-135m-instruct-tuned", "submit"]
    assert steps[6 : 6 + len(served_pair)] == served_pair
    assert steps[-1] == {"submit": "stop", "verify": "verify"}[broken]
    assert steps.count("stop") == sum(step.startswith("serve") for step in steps) == {"submit": 1, "verify": 2}[broken]


def test_the_status_of_a_failed_command_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo exits with the status of the failed command."""
    monkeypatch.setattr(demo, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit) as ended:
        demo._sparcom("verify")
    assert ended.value.code == 3


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails to start ends the demo, which shows the end of the log."""
    monkeypatch.setattr(demo_server, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('port taken')"])
    with pytest.raises(EngineError, match="port taken"), demo_server.serving([tmp_path], tmp_path):
        pytest.fail("the server never was ready")


def test_the_server_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step raises, the server's process is gone, even if it ignores SIGTERM."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(demo_server, "command", lambda *_: [sys.executable, "-c", stubborn])
    monkeypatch.setattr(demo_server, "STOP_SECONDS", 0.2)
    log = tmp_path / "server.log"
    monkeypatch.setattr(demo_server, "_answers", lambda _: bool(log.read_text()))
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def remember(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(demo_server.subprocess, "Popen", remember)
    with pytest.raises(RuntimeError, match="a step"), demo_server.serving([tmp_path], tmp_path):
        raise RuntimeError("a step")
    assert started[0].returncode is not None
