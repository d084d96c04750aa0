"""`sparcom extract` reports errors before it loads a model, and the outcome of instructions after."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data import errors
from sparcom_data.progress import Progress
from sparcom_data.testing import write_random_archive


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if an engine starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and vLLM raises their own warnings
        from sparcom_extractor.engine import CaptureEngine

    async def start(settings: Any) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(CaptureEngine, "start", start)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", {"id": "a", "text": "x"}, {"id": "b", "text": "y"})


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", "extract", "--model", "m", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_every_problem_of_the_file_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invalid JSON, a missing text, an unknown field and a duplicate id are reported with their lines."""
    bad = write_lines(
        tmp_path / "in.jsonl",
        "{",
        {"id": "a", "text": ""},
        {"id": "b", "text": "x", "txet": 1},
        {"id": "c", "text": "x"},
    )
    bad.write_text(bad.read_text() + '{"id": "c", "text": "y"}\n')
    assert run(monkeypatch, "--input", bad, "--output", tmp_path / "a.zarr") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: in.jsonl, line 1: not JSON")
    assert "in.jsonl, line 2: text must not be empty" in said
    assert "in.jsonl, line 3: txet: unknown field" in said
    assert "'c' occurs 2 times" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_standard_input_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--input -` reads standard input, here CSV, and reports its problems."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"id,prompt\na,b\n")))
    assert run(monkeypatch, "--input", "-", "--output", tmp_path / "a.zarr") == 1
    assert "standard input: unknown columns: 'prompt' (did you mean 'text'?)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without instructions is an error."""
    (tmp_path / "in.jsonl").write_text(content)
    assert run(monkeypatch, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "a.zarr") == 1
    assert "holds no instruction" in capsys.readouterr().err


def test_a_missing_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the file."""
    assert run(monkeypatch, "--input", tmp_path / "gone", "--output", tmp_path / "a.zarr") == 1
    assert f"cannot read {tmp_path / 'gone'}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_output_that_exists_is_left_alone(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything that exists at --output is refused and stays unchanged."""
    output = tmp_path / "a.zarr"
    {"folder": output.mkdir, "file": output.touch, "dangling link": lambda: output.symlink_to("gone")}[kind]()
    assert run(monkeypatch, "--input", source, "--output", output) == 1
    assert "an archive must have a new name" in capsys.readouterr().err
    assert output.is_symlink() or output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-tokens", "5"], "max_tokens must be 0 if positions is 'prompt'; it is 5"),
        (["--positions", "all"], "max_tokens must be at least 1 if positions is 'all'"),
        (["--positions", "response"], "max_tokens must be at least 1 if positions is 'response'"),
        (["--positions", "all", "--max-tokens", "-1"], "max_tokens"),
        (["--dtype", "int8"], "dtype must be one of auto, float32, bfloat16, float16; it is 'int8'"),
    ],
)
def test_options_that_contradict_are_refused(
    options: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Options that break a rule, alone or together, are reported with rule and value."""
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/no/such"], "/no/such is not a folder. Check the path"),
        (["--model", "a.gguf"], "a.gguf holds a GGUF model"),
        (["--model", "{folder}"], "a model's folder must hold config.json; {folder} does not"),
        (["--quantization", "zip"], "quantization must be a method of the installed vLLM"),
        (["--model", "{folder}/model", "--revision", "v1"], "revision needs a name on the Hugging Face hub"),
        (["--model", "{folder}/model", "--prompt-format", "chat"], "this model's tokenizer has none"),
        (["--input", "{folder}/chat.jsonl"], "messages need prompt_format 'chat'; it is 'raw'. Choose chat"),
    ],
)
def test_errors_are_found_before_loading_where_possible(
    options: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing model, an unsuitable setting, and a missing chat template are reported without loading a model."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    write_lines(tmp_path / "chat.jsonl", {"id": "a", "messages": [{"role": "user", "content": "x"}]})
    words = [option.format(folder=tmp_path) for option in options]
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *words) == 1
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    "options", [["--granularity", "sum"], ["--positions", "some"], ["--prompt-format", "xml"], ["--max-tokens", "many"]]
)
def test_unknown_choices_are_wrong_usage(
    options: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that does not exist is wrong usage, with status 2."""
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *options) == 2


class Engine:
    """A fake engine with a given outcome. Checks the arguments it receives."""

    warnings = ("1 of 2 instructions ('a'): the prompt begins with the BOS token (id 1) twice.",)

    suspended = False
    signal: signal.Signals | None = None  # sent to this process while it runs
    resumed = False

    def __init__(self, ending: Progress | Exception, failed: list[int]) -> None:
        self.ending, self.failed, self.closed = ending, failed, False
        self.stopped = asyncio.Event()

    def prepare(self, instructions: Any, options: Any, path: Path, name: str, *, resume: bool) -> Engine:
        assert [item.id for item in instructions] == ["a", "b"]
        assert (options.positions, options.max_tokens, options.add_special_tokens) == ("all", 3, False)
        assert options.granularity == "count"
        assert name == "in"
        self.resumed = resume
        if not path.exists():
            write_random_archive(path, per_category=1, failed=self.failed)
        return self

    def suspend(self) -> None:
        self.suspended = True
        self.stopped.set()

    async def run(self, report: Any) -> Progress:
        if self.signal is not None:
            signal.raise_signal(self.signal)
            await self.stopped.wait()
        if isinstance(self.ending, Exception):
            raise self.ending
        report(self.ending)
        return self.ending

    async def close(self) -> None:
        self.closed = True


def started(monkeypatch: pytest.MonkeyPatch, ending: Progress | Exception, failed: list[int] | None = None) -> Engine:
    from sparcom_extractor.engine import CaptureEngine

    engine = Engine(ending, failed or [])

    async def start(settings: Any) -> Engine:
        assert (settings.model, settings.max_num_seqs) == ("m", 4)
        return engine

    monkeypatch.setattr(CaptureEngine, "start", start)
    return engine


OPTIONS = (
    "--granularity",
    "count",
    "--positions",
    "all",
    "--max-tokens",
    "3",
    "--no-special-tokens",
    "--max-num-seqs",
    "4",
)


def test_a_complete_extraction_is_0(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options reach the engine, one line on standard output reports the result, and the engine is closed."""
    done = Progress(instructions=2, complete=2, tokens=9, tokens_done=9, seconds=3.0, tokens_per_second=3.0)
    engine = started(monkeypatch, done)
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == 0
    said = capsys.readouterr()
    assert "2 of 2 instructions complete; 9 tokens in 3.0 s (3 tokens/s)" in said.out
    assert f"warning: {engine.warnings[0]}\n" in said.err
    assert engine.closed


def test_failed_instructions_are_1_and_listed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failed instructions are listed with their errors; the exit status is 1."""
    started(monkeypatch, Progress(instructions=2, complete=1, failed=1), failed=[1])
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == 1
    assert "failed 'i001': failed on purpose" in capsys.readouterr().err


def test_waiting_for_storage_is_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk slower than the model is not a failure; the seconds of waiting are reported."""
    started(monkeypatch, Progress(instructions=2, complete=2, storage_wait_seconds=4.2))
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == 0
    assert "the engine waited 4.2 s for storage" in capsys.readouterr().err


@pytest.fixture
def _usual_signals() -> Iterator[None]:
    """A stopped command leaves the default handlers, so that the next signal ends it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("_usual_signals")
def test_a_signal_suspends(
    number: signal.Signals,
    status: int,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message tells how to continue. The bar shows only complete instructions. The next signal ends the process."""
    engine = started(monkeypatch, Progress(instructions=2, complete=0))
    engine.signal = number
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == status
    said = capsys.readouterr().err
    assert "a.zarr: stopped; 0 of 2 instructions complete. To continue, run the same command with --resume" in said
    (bar,) = [line for line in said.splitlines() if line.startswith("Extracting")]
    assert "━" not in bar, "nothing is complete, so the bar is empty"
    assert {signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)} == {signal.SIG_DFL}
    assert engine.closed


def test_an_unfinished_archive_needs_resume(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --resume it is refused, and the error names the option. With it the engine continues."""
    output = tmp_path / "a.zarr"
    write_random_archive(output, per_category=1)
    metadata = output / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"state": "complete"', '"state": "open"'))
    engine = started(monkeypatch, Progress(instructions=2, complete=2))
    assert run(monkeypatch, "--input", source, "--output", output, *OPTIONS) == 1
    assert "a.zarr exists and is unfinished. Continue it with --resume" in capsys.readouterr().err
    assert run(monkeypatch, "--input", source, "--output", output, "--resume", *OPTIONS) == 0
    assert engine.resumed


def test_resuming_a_complete_archive_does_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No engine starts, and the exit status is 0, so that a job's script can always pass --resume."""
    write_random_archive(tmp_path / "a.zarr", per_category=1)
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", "--resume") == 0
    assert "a.zarr: complete; there is nothing to resume" in capsys.readouterr().out


def test_resume_starts_from_the_beginning_if_nothing_is_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the first run can pass --resume too."""
    engine = started(monkeypatch, Progress(instructions=2, complete=2))
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", "--resume", *OPTIONS) == 0
    assert engine.resumed


@pytest.mark.parametrize("kind", ["EngineError", "DiskFullError"])
def test_what_can_be_continued_is_reported(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the death of the engine, or on a full disk, the error tells how to continue."""
    started(monkeypatch, getattr(errors, kind)("it stopped"))
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == 1
    assert "error: it stopped. To continue, run the same command with --resume" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_engine_closed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error during extraction is one line, and the engine is closed."""
    from sparcom_data.errors import StorageError

    engine = started(monkeypatch, StorageError("no space left"))
    assert run(monkeypatch, "--input", source, "--output", tmp_path / "a.zarr", *OPTIONS) == 1
    assert "error: no space left" in capsys.readouterr().err
    assert engine.closed
