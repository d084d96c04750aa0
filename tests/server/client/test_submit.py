"""`sparcom submit` against a real server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fake_engine import FakeEngine
from sparcom_cli.remote.submit import submit
from sparcom_client import ServerError
from sparcom_client.progress import describe
from sparcom_client.types import Job
from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError, SparcomError, StorageError

Start = Callable[..., Any]


def write(path: Path, *lines: object) -> Path:
    """Write a file of JSON lines; strings are written unchanged."""
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of three instructions, the last with seven words."""
    return write(
        tmp_path / "mini.jsonl",
        {"id": "a", "text": "one two", "category": "CLS"},
        {"id": "b", "messages": [{"role": "user", "content": "one"}], "metadata": {"n": 1}},
        {"id": "c", "text": "one two three four five six seven"},
    )


def jobs(running: Any) -> list[dict[str, Any]]:
    """Return the server's jobs, newest first."""
    found: list[dict[str, Any]] = running.http.get("/v1/extractions").json()["data"]
    return found


def run(running: Any, file: Path, *arguments: str) -> Result:
    """Run the command; return its result."""
    return CliRunner().invoke(submit, ["--server", running.url, "--input", str(file), *arguments])


def test_it_submits_and_waits(start: Start, file: Path) -> None:
    """--wait exits with 0 if all instructions are complete; the archive holds the instructions and the options."""
    running = start(FakeEngine(pause=0.05))
    arguments = ["--wait", "--archive", "mine", "--positions", "all", "--max-tokens", "3", "--no-special-tokens"]
    result = run(running, file, *arguments)
    assert result.exit_code == 0, result.output
    assert f"archive  {running.url}/v1/archives/mine/zarr" in result.stdout
    assert "complete: 3 of 3 instructions complete; " in result.stdout
    archive = open_archive(running.archives / "mine.zarr")
    assert archive.instructions.id == ["a", "b", "c"]
    assert archive.attributes.dataset.name == "mini"
    assert (archive.attributes.capture.positions, archive.attributes.capture.max_tokens) == ("all", 3)
    options = jobs(running)[0]["options"]
    assert options["add_special_tokens"] is False


@pytest.mark.parametrize("name", ["table.csv", "-"])
def test_it_submits_csv_and_standard_input(start: Start, tmp_path: Path, name: str) -> None:
    """CSV is read as a table; standard input becomes a data set named stdin."""
    running, table = start(), "id,text,category\na,one two,CLS\n"
    (tmp_path / "table.csv").write_text(table)
    source = name if name == "-" else str(tmp_path / name)
    arguments = ["--server", running.url, "--input", source, "--wait", "--archive", "mine"]
    result = CliRunner().invoke(submit, arguments, input=table)
    assert result.exit_code == 0, result.output
    archive = open_archive(running.archives / "mine.zarr")
    assert (archive.instructions.id, archive.instructions.category) == (["a"], ["CLS"])
    assert archive.attributes.dataset.name == {"-": "stdin"}.get(name, "table")


def test_it_prints_the_warnings_of_the_server(start: Start, file: Path) -> None:
    """Warnings about prompts, known once the job has started, go to standard error."""
    result = run(start(FakeEngine(warnings=["1 of 3 instructions ('a'): BOS twice."])), file, "--wait")
    assert result.exit_code == 0, result.output
    assert "warning: 1 of 3 instructions ('a'): BOS twice.\n" in result.stderr


def test_it_submits_for_counts(start: Start, file: Path) -> None:
    """--granularity reaches the archive and the job."""
    running = start()
    result = run(running, file, "--wait", "--archive", "counts", "--granularity", "count")
    assert result.exit_code == 0, result.output
    assert open_archive(running.archives / "counts.zarr").granularity == "count"
    assert jobs(running)[0]["options"]["granularity"] == "count"


def test_without_wait_it_returns_at_once(start: Start, file: Path) -> None:
    """The job's id is printed, and the job continues."""
    running = start(FakeEngine(pause=0.3))
    result = run(running, file)
    assert result.exit_code == 0
    job_id = result.stdout.split()[1]
    assert running.job(job_id)["state"] in {"queued", "loading", "running"}
    assert running.wait(job_id)["state"] == "complete"


def test_a_failed_instruction_is_named(start: Start, file: Path) -> None:
    """Exit status 1 with the id and the reason, although the job is complete."""
    result = run(start(FakeEngine(max_prompt_tokens=5)), file, "--wait")
    assert result.exit_code == 1
    assert "failed 'c': the prompt may have 5 tokens" in result.stderr
    assert "incomplete: 2 of 3 instructions complete, 1 failed; " in result.stdout


def test_a_failed_job_is_reported(start: Start, file: Path) -> None:
    """Exit status 1 with the reason and the number of complete instructions."""
    result = run(start(FakeEngine(error=StorageError("the disk is full"), error_after=1)), file, "--wait")
    assert result.exit_code == 1
    assert "error: the disk is full" in result.stderr
    assert "failed: 1 of 3 instructions complete" in result.stdout


def test_a_cancelled_job_is_no_success(start: Start, file: Path) -> None:
    """Exit status 1 if the job was cancelled meanwhile."""
    running = start(FakeEngine(pause=1))
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(running, file, "--wait")))
    thread.start()
    running.wait_for(lambda: len(jobs(running)) == 1)
    running.http.delete(f"/v1/extractions/{jobs(running)[0]['id']}")
    thread.join(10)
    assert results[0].exit_code == 1
    assert "cancelled: 0 of 3 instructions complete, 3 cancelled; " in results[0].stdout
    assert "0 of 3 instructions complete, 3 cancelled" in results[0].stderr, "text beside the bar"


def test_the_bar_shows_all_states(start: Start) -> None:
    """Cancelled and failed instructions are counted in the text; the reason of a waiting job is shown."""
    progress = {"instructions": 600, "complete": 106, "failed": 1, "cancelled": 493, "seconds_left": 9.0}
    report = start().post().json() | {"state": "cancelled", "progress": progress, "queue_position": None}
    counts = "106 of 600 instructions complete, 1 failed, 493 cancelled"
    assert describe(Job.model_validate(report)) == counts
    waiting = report | {"state": "queued", "queue_position": 2, "reason": "waits for space on the disk"}
    assert describe(Job.model_validate(waiting)) == f"{counts} · after 2 other jobs · waits for space on the disk"
    running = report | {"state": "running", "progress": progress | {"tokens_per_second": 12.4}}
    assert describe(Job.model_validate(running)) == f"{counts} · 12 tokens/s · 0:09 left"


@pytest.mark.parametrize(
    ("lines", "arguments", "words"),
    [
        (["{"], [], "line 1: not JSON"),
        ([{"id": "a", "text": ""}], [], "line 1: text must not be empty"),
        ([{"id": "a", "text": "x"}] * 2, [], "'a' occurs 2 times"),
        ([], [], "holds no instruction"),
        ([{"id": "a", "text": "x"}], ["--positions", "all"], "max_tokens must be at least 1"),
    ],
)
def test_bad_files_are_refused_before_sending(
    start: Start, tmp_path: Path, lines: list[object], arguments: list[str], words: str
) -> None:
    """Problems have line numbers, and nothing is sent."""
    running = start()
    result = run(running, write(tmp_path / "bad.jsonl", *lines), *arguments)
    assert isinstance(result.exception, InvalidInputError)
    assert words in str(result.exception)
    assert jobs(running) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "none"], "the server refused (status 404): this server has no model 'none'; choose one of fake"),
        (["--archive", "a/b"], "archive: an archive's name"),
    ],
)
def test_a_refusal_of_the_server_is_reported(start: Start, file: Path, arguments: list[str], words: str) -> None:
    """The server's message reaches the user."""
    result = run(start(), file, *arguments)
    assert isinstance(result.exception, SparcomError)
    assert words in str(result.exception)


def test_a_body_that_is_too_large_is_reported(start: Start, tmp_path: Path) -> None:
    """The error is shown even if the server closes the connection while megabytes are still being sent."""
    file = write(tmp_path / "big.jsonl", {"id": "a", "text": "x " * 4_000_000})
    result = run(start(max_body_bytes=1000), file)
    assert isinstance(result.exception, ServerError)
    assert "413" in str(result.exception)


def test_a_missing_server_is_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the address and the remedy."""
    monkeypatch.setattr("sparcom_client.exchange.FIRST_DELAY", 1000.0)  # beyond the patience
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = CliRunner().invoke(submit, ["--server", url, "--input", str(file)])
    assert isinstance(result.exception, ServerError)
    assert url in str(result.exception)
    assert "sparcom serve" in str(result.exception)
