"""Both clients against a real server with fake engines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_client import ConflictError, Job, NotFoundError, RequestRefusedError, types
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.schemas import reports

Start = Callable[..., Any]
Connect = Callable[..., Any]


def items(count: int) -> list[dict[str, Any]]:
    """Return small instructions."""
    return [{"id": f"i{number}", "text": "one two three"} for number in range(count)]


def test_from_submission_to_masks(start: Start, connect: Connect) -> None:
    """A job of two models is submitted, awaited, found by its metadata, and its archives are read from the server."""
    client = connect(start(FakeEngine("base"), FakeEngine("tuned")).url)
    assert client.ready().ready
    assert [model.name for model in client.models()] == ["base", "tuned"]
    options = ExtractionOptions(positions="all", max_tokens=2)
    job = client.submit(
        items(4), model="base", tuned="tuned", archive="mine", options=options, dataset="few",
        metadata={"lab": "a=b:c"}, expires=timedelta(hours=2),
    )  # fmt: skip
    assert (job.state, job.dataset, job.options["max_tokens"]) == ("queued", {"name": "few"}, 2)
    ended = client.wait(job, progress=False)
    assert ended.succeeded
    assert datetime.fromisoformat(ended.expires) > datetime.now(UTC) + timedelta(hours=1)
    assert [found.id for found in client.jobs(metadata={"lab": "a=b:c"}, state=["complete", "failed"])] == [job.id]
    assert list(client.jobs(metadata={"lab": "other"})) == []
    assert client.open_archive(ended).instructions.id == ["i0", "i1", "i2", "i3"]
    assert client.open_archive(ended.archives[1]).read_active(0, 5).shape[0] == 5
    assert {archive.name for archive in client.archives()} == {"mine", "mine-tuned"}
    assert client.archive("mine-tuned").instructions["complete"] == 4
    client.delete_archive("mine-tuned")
    with pytest.raises(NotFoundError):
        client.archive("mine-tuned")


def test_a_list_is_read_to_its_end(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration asks for part after part, newest first, and filters by state, model and time."""
    client = connect(start(FakeEngine("a"), FakeEngine("b")).url)
    ids = [client.submit(items(1), model="ab"[number % 2]).id for number in range(5)]
    for job_id in ids:
        client.wait(job_id, progress=False)
    monkeypatch.setattr("sparcom_client.methods.PAGE", 2)
    assert [job.id for job in client.jobs()] == ids[::-1]
    assert [job.id for job in client.jobs(model="b")] == [ids[3], ids[1]]
    assert list(client.jobs(state="failed")) == []
    now = datetime.now(UTC)
    assert len(list(client.jobs(created_before=now, created_after=now - timedelta(hours=1)))) == 5
    assert list(client.jobs(created_after=now)) == []


def test_every_report_of_a_job_is_seen(start: Start, connect: Connect) -> None:
    """Reports follow one another to the final state, which comes once; the bar's function is called with each."""
    client = connect(start(FakeEngine(pause=0.02)).url)
    reports_of = list(client.watch(client.submit(items(10))))
    assert [report.state for report in reports_of].count("complete") == 1
    done = [report.progress.complete for report in reports_of]
    assert done == sorted(done)
    assert len(set(done)) > 3
    shown: list[Job] = []
    assert client.wait(client.submit(items(2)), progress=shown.append) == shown[-1]


def test_a_bar_is_shown(start: Start, connect: Connect, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar is on standard error and ends with the counts."""
    client = connect(start(FakeEngine(max_prompt_tokens=2)).url)
    client.wait(client.submit([*items(2), {"id": "short", "text": "one"}]))
    said = capsys.readouterr()
    assert said.out == ""
    assert "complete" in said.err
    assert "1 of 3 instructions complete, 2 failed" in said.err


def test_a_job_is_cancelled(start: Start, connect: Connect) -> None:
    """Complete instructions stay; a second request is a conflict, unless the answer to the first was lost."""
    running = start(FakeEngine(pause=0.05))
    client = connect(running.url)
    job = client.submit(items(200))
    running.wait(job.id, lambda report: report["progress"]["complete"] > 0)
    assert client.cancel(job.id).state in {"cancelling", "cancelled"}
    assert client.wait(job.id, progress=False).state == "cancelled"
    with pytest.raises(ConflictError, match="only a queued or running extraction can be cancelled"):
        client.cancel(job.id)
    lost = [True]
    lossy = connect(running.url, drops=lambda request: request.method == "DELETE" and bool(lost and lost.pop()))
    assert lossy.cancel(client.submit(items(200)).id).state in {"cancelling", "cancelled"}
    assert lost == []


@pytest.mark.parametrize("losses", [1, 3])
def test_a_lost_answer_never_makes_a_second_job(start: Start, connect: Connect, losses: int) -> None:
    """The server has accepted the job, and its answer is lost: the repeats get the same job."""
    running = start()
    lost = [True] * losses
    client = connect(running.url, drops=lambda request: request.method == "POST" and bool(lost and lost.pop()))
    job = client.submit(items(2))
    assert lost == []
    assert [found.id for found in client.jobs()] == [job.id]
    assert client.wait(job, progress=False).succeeded


def test_a_chosen_key_finds_the_first_job(start: Start, connect: Connect) -> None:
    """Two calls with one idempotency key are one job; another request with that key is refused."""
    client = connect(start().url)
    first = client.submit(items(2), archive="one", idempotency_key="mine")
    assert client.submit(items(2), archive="one", idempotency_key="mine").id == first.id
    with pytest.raises(RequestRefusedError) as raised:
        client.submit(items(3), archive="two", idempotency_key="mine")
    assert raised.value.type == "urn:sparcom:problem:idempotency"


def test_refusals_have_their_problems(start: Start, connect: Connect) -> None:
    """Every problem of a batch is an item of the error, and nothing was submitted."""
    client = connect(start().url)
    with pytest.raises(RequestRefusedError) as raised:
        client.submit([{"id": "a"}, {"id": "b", "text": ""}])
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["instructions.0", "instructions.1"]
    assert list(client.jobs()) == []
    with pytest.raises(NotFoundError, match="this server has no model 'none'"):
        client.submit(items(1), model="none")
    with pytest.raises(TypeError, match="exactly one"):
        client.submit()


@pytest.mark.parametrize("name", ["some.jsonl", "some.csv", "some.json"])
def test_files_are_read_as_by_the_command(start: Start, connect: Connect, tmp_path: Path, name: str) -> None:
    """JSON lines, CSV and arrays are submitted; the data set has the file's name."""
    contents = {
        "some.jsonl": '{"id": "a", "text": "x"}\n',
        "some.csv": "id,text\na,x\n",
        "some.json": '[{"id": "a", "text": "x"}]',
    }
    (tmp_path / name).write_text(contents[name])
    client = connect(start().url)
    job = client.submit(tmp_path / name)
    assert job.dataset == {"name": "some"}
    assert client.open_archive(client.wait(job, progress=False)).instructions.id == ["a"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (types.Job, reports.JobReport), (types.JobArchive, reports.JobArchive), (types.JobLinks, reports.JobLinks),
        (types.ArchiveSummary, reports.ArchiveSummary), (types.ArchiveInfo, reports.ArchiveReport),
        (types.UploadedFile, reports.FileReport), (types.NewKey, reports.NewKeyReport),
        (types.Model, reports.ModelReport), (types.Readiness, reports.Readiness),
    ],
)  # fmt: skip
def test_types_have_the_fields_of_the_server(ours: Any, theirs: Any) -> None:
    """The client's types hold every field that the server sends, but for the constant `object`."""
    assert set(ours.model_fields) == set(theirs.model_fields) - {"object"}
