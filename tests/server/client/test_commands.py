"""`sparcom jobs`, `cancel`, `results`, and archives on a server that wants a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fake_engine import FakeEngine
from sparcom_cli.main import cli
from sparcom_cli.shared.archives import open_named
from sparcom_client import ConflictError, NotFoundError
from sparcom_data.errors import StorageError

Start = Callable[..., Any]


@pytest.fixture
def server(start: Start, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a server of two models, one short of tokens; it is SPARCOM_SERVER."""
    running = start(FakeEngine("base", max_prompt_tokens=4), FakeEngine("tuned"))
    monkeypatch.setenv("SPARCOM_SERVER", running.url)
    return running


def run(*arguments: object) -> Result:
    """Run a command; return its result."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def submit(tmp_path: Path, *arguments: object) -> str:
    """Submit three instructions, one of five words, with the command; return the job's id."""
    lines = [{"id": "a", "text": "x"}, {"id": "b", "text": "x y"}, {"id": "long", "text": "v w x y z"}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("submit", "--input", tmp_path / "few.jsonl", *arguments)
    assert result.stdout.startswith("job      "), result.output
    return result.stdout.split()[1]


def test_jobs_are_listed(server: Any, tmp_path: Path) -> None:
    """One line per job, newest first; states, models, metadata, times and a limit select; --json prints whole jobs."""
    first = submit(tmp_path, "--model", "base", "--metadata", "run=1", "--metadata", "lab=a=b", "--wait")
    second = submit(tmp_path, "--model", "tuned", "--metadata", "run=2", "--expires", "2h", "--wait")
    lines = run("jobs").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [second, first]
    assert "2/3" in lines[1]
    for arguments, ids in (
        (["--metadata", "run=1", "--metadata", "lab=a=b"], [first]),
        (["--model", "tuned", "--state", "complete", "--state", "failed"], [second]),
        (["--state", "running"], []),
        (["--since", "2100-01-01"], []),
        (["--until", "2100-01-01", "--limit", "1"], [second]),
    ):
        shown = [json.loads(line) for line in run("jobs", "--json", *arguments).stdout.splitlines()]
        assert [job["id"] for job in shown] == ids, arguments
    assert shown[0]["expires"]


def test_one_job_is_shown(server: Any, tmp_path: Path) -> None:
    """Both archives, times, metadata, counts and failures of a job of two models."""
    job = submit(tmp_path, "--model", "base", "--tuned", "tuned", "--archive", "m", "--metadata", "run=1", "--wait")
    result = run("jobs", job)
    assert result.exit_code == 0
    assert "models   base, tuned" in result.stdout
    assert f"archive  {server.url}/v1/archives/m/zarr" in result.stdout
    assert f"tuned    {server.url}/v1/archives/m-tuned/zarr" in result.stdout
    assert "metadata run=1" in result.stdout
    assert "incomplete: 5 of 6 instructions complete, 1 failed; " in result.stdout
    assert "failed 'long': the prompt may have 4 tokens" in result.stderr
    assert json.loads(run("jobs", job, "--json").stdout)["id"] == job
    assert isinstance(run("jobs", "none").exception, NotFoundError)


def test_a_job_is_cancelled(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is printed; a job that has ended cannot be cancelled."""
    running = start(FakeEngine("base", pause=1))
    monkeypatch.setenv("SPARCOM_SERVER", running.url)
    job = submit(tmp_path)
    result = run("cancel", job)
    assert result.stdout.split()[0] == job
    assert result.stdout.split()[1] in {"cancelling", "cancelled"}
    running.wait(job)
    assert isinstance(run("cancel", job).exception, ConflictError)


def test_results_are_written(server: Any, tmp_path: Path) -> None:
    """Results and errors are JSON lines, as the server sends them, to standard output or a file."""
    job = submit(tmp_path, "--model", "base", "--wait")
    lines = [json.loads(line) for line in run("results", job).stdout.splitlines()]
    assert lines == [json.loads(line) for line in server.http.get(f"/v1/extractions/{job}/results").text.splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert run("results", job, "--errors", "--output", tmp_path / "errors.jsonl").exit_code == 0
    (error,) = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert json.loads(error)["error"]["message"] == "the prompt may have 4 tokens"


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--metadata", "x"], "KEY=VALUE"), (["--expires", "soon"], "12h or 7d")]
)
def test_wrong_values_are_wrong_usage(arguments: list[str], words: str) -> None:
    """A value that cannot be read is named, with an example."""
    result = run("submit", "--input", "-", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_same_submission_is_one_job(server: Any, tmp_path: Path) -> None:
    """With --idempotency-key, a repeated command returns the first job."""
    arguments = ("--model", "base", "--archive", "once", "--idempotency-key", "mine")
    assert submit(tmp_path, *arguments) == submit(tmp_path, *arguments)
    assert len(server.http.get("/v1/extractions").json()["data"]) == 1


def test_a_key_reads_archives_of_a_server(server: Any, tmp_path: Path) -> None:
    """verify and analyze send the key to an archive's address; without it, the error names the option."""
    key = server.http.post("/v1/keys", json={"name": "root", "role": "admin"}).json()["key"]
    submit(tmp_path, "--model", "tuned", "--archive", "mine", "--key", key, "--wait")
    address = f"{server.url}/v1/archives/mine/zarr"
    result = run("verify", address, "--no-tokenizer", "--key", key)
    assert "nothing wrong was found" in result.output
    options = ("--resamples", "0", "--permutations", "0", "--output", tmp_path / "report", "--key", key)
    assert run("analyze", address, *options).exit_code == 0
    refused = run("verify", address, "--no-tokenizer").exception
    assert isinstance(refused, StorageError)
    assert "Give --key, or set SPARCOM_API_KEY" in str(refused)


def test_a_key_goes_to_archives_of_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other addresses and folders never get the key."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("sparcom_data.archive.open_archive", lambda where, headers: seen.update({where: headers}))
    for where in ("run.zarr", "http://other/run.zarr", "s3://b/v1/archives/a/zarr", "https://lab/v1/archives/a/zarr"):
        open_named(where, "secret")
    assert [where for where, headers in seen.items() if headers] == ["https://lab/v1/archives/a/zarr"]
