"""Fetching sources from the Hugging Face hub, at a reported commit and never partially or silently.

The hub is a small local server that answers the requests of huggingface_hub: the list of a data set's files, a file's
entity tag and commit, and the file.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import read_jsonl
from sparcom_hexainst.build.hub import HubError, fetch_sources

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `dataset` is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="the extra `dataset` is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

ENOUGH = 110  # records of each source, of which 100 are drawn
POLL = 0.01  # seconds in which the server notices its shutdown
OLD, NEW = "0" * 40, "1" * 40
DATASETS = {
    "flan": "Muennighoff/flan",
    "humaneval": "openai/openai_humaneval",
    "triviaqa": "mandarjoshi/trivia_qa",
    "alpaca": "tatsu-lab/alpaca",
    "math500": "HuggingFaceH4/MATH-500",
}


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
    return buffer.getvalue()


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def published(word: str) -> dict[str, dict[str, bytes]]:
    """Return the files of the five data sets as published; every text contains the word."""

    def asked(request: str, number: int) -> str:
        return f"{request} {word}{number} then{number} when{number} where{number}"

    numbers = range(ENOUGH)
    trivia = as_parquet(
        [{"question": asked("Who", n), "question_id": f"tc_{n}", "answer": {"value": "A"}} for n in numbers]
    )
    half = ENOUGH // 2
    return {
        DATASETS["flan"]: {
            "README.md": b"---\nlicense: other\n---\n",
            "train/sst2_10templates_train.jsonl": as_lines([{"inputs": "never fetched", "task": "sst2"}]),
            "test/sst2_10templates_test.jsonl": as_lines(
                [{"inputs": asked("Good or bad?", n), "task": "sst2"} for n in numbers]
            ),
            "test/xsum_10templates_test.jsonl": as_lines(
                [{"inputs": asked("Summarize:", 1000 + n), "task": "xsum"} for n in numbers]
            ),
            "test/squad_v1_10templates_test.jsonl": as_lines([{"inputs": "Who? Never fetched.", "task": "squad_v1"}]),
        },
        DATASETS["humaneval"]: {
            "openai_humaneval/test-00000-of-00001.parquet": as_parquet(
                [{"task_id": f"HumanEval/{n}", "prompt": asked("def f():", 2000 + n)} for n in numbers]
            ),
        },
        DATASETS["triviaqa"]: {
            "rc.wikipedia.nocontext/validation-00000-of-00001.parquet": trivia,
            "rc/train-00000-of-00026.parquet": b"never fetched",
        },
        DATASETS["alpaca"]: {
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": as_parquet(
                [{"instruction": asked("Write a poem of", 4000 + n), "input": "", "output": "o"} for n in numbers]
            ),
        },
        DATASETS["math500"]: {
            "test.jsonl": as_lines(
                [
                    {"problem": asked("Find", 5000 + n), "unique_id": f"u{n}", "subject": ("A", "B")[n < half]}
                    for n in numbers
                ]
            ),
        },
    }


@dataclass
class FakeHub:
    """A fake hub: data sets by name and commit, the newest commit, requested files, and one forbidden file."""

    commits: dict[str, dict[str, dict[str, bytes]]]
    newest: str = NEW
    fetched: list[str] = field(default_factory=list)
    closed: str = "no file"
    address: str = ""

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """Return contents and commit at an address, or None."""
        kind, *parts = path.strip("/").split("/")
        if kind == "api":
            name, commit = "/".join(parts[1:3]), (parts[4:] or [self.newest])[0]
            files = self.commits.get(commit, {}).get(name)
            if files is None:
                return None
            siblings = [{"rfilename": file} for file in files]
            return json.dumps({"id": name, "sha": commit, "private": False, "siblings": siblings}).encode(), commit
        name, commit, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        content = self.commits.get(commit, {}).get(name, {}).get(file)
        return None if content is None else (content, commit)


def serve(hub: FakeHub) -> http.server.ThreadingHTTPServer:
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> bytes:
            found = hub.answer(self.path.split("?")[0])
            content, commit = found or (b'{"error": "not here"}', "")
            forbidden = hub.closed in self.path
            self.send_response(403 if forbidden else 200 if found else 404)
            if not found and not forbidden:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            return content

        def do_GET(self) -> None:
            if "/api/" not in self.path:
                hub.fetched.append(self.path.split("/", 5)[-1])
            self.wfile.write(self.do_HEAD())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(POLL,), daemon=True).start()
    return server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with two commits, and an empty cache; huggingface_hub is pointed at it."""
    fake = FakeHub({OLD: published("old"), NEW: published("new")})
    with serve(fake) as server:
        fake.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", fake.address)  # HF_ENDPOINT itself is read at import
        template = f"{fake.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield fake
        server.shutdown()


@pytest.fixture
def build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[Any, str, str]]:
    """Return `build(name, *arguments)`, which builds that file and returns exit status, output and errors."""

    def build(name: str, *arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparcom", "dataset", "build", "--output", str(tmp_path / name), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return build


def test_the_natural_half_comes_from_five_data_sets(
    hub: FakeHub, build: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    """Only needed files are fetched; each of 600 items records its source, licence and commit."""
    status, output, _ = build("a.jsonl")
    assert status == 0
    assert output.endswith("1200 instructions in 6 categories, 600 synthetic and 600 natural\n")
    assert all(f"{name} was read at commit {NEW}\n" in output for name in DATASETS)
    assert sorted(set(hub.fetched)) == sorted(
        f"{NEW}/{file}"
        for files in hub.commits[NEW].values()
        for file, content in files.items()
        if b"ever fetched" not in content and file != "README.md"
    )
    natural = [item for item in read_jsonl(tmp_path / "a.jsonl") if item.half == "natural"]
    assert {item.metadata["revision"] for item in natural if item.metadata} == {NEW}
    assert all(item.metadata and item.license and " new" in item.readable for item in natural)
    assert {item.source.split(":")[0] for item in natural} == set(DATASETS)


def test_a_second_build_fetches_nothing_and_gives_the_same_bytes(
    hub: FakeHub, build: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    """Cached files of a commit are not fetched again, and the result does not depend on the cache."""
    build("a.jsonl")
    hub.fetched.clear()
    status, _, _ = build("b.jsonl")
    assert status == 0
    assert hub.fetched == []
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_requested_commit_is_read(hub: FakeHub, build: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    """--revision reads one source at that commit and the others at the newest; the lines record both."""
    status, output, _ = build("a.jsonl", "--revision", f"alpaca={OLD}")
    assert status == 0
    assert f"alpaca was read at commit {OLD}\n" in output
    assert f"flan was read at commit {NEW}\n" in output
    natural = [item for item in read_jsonl(tmp_path / "a.jsonl") if item.half == "natural"]
    read = {(item.category, (item.metadata or {})["revision"], "old" in item.readable) for item in natural}
    assert read == {(name, NEW, False) for name in ("CLS", "CODE", "QA", "MATH", "SUM")} | {("GEN", OLD, True)}


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_is_named(
    name: str, hub: FakeHub, build: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    """A data set missing on the hub, the first or any other, is an error with remedies, and writes no file."""
    del hub.commits[NEW][DATASETS[name]]
    status, _, err = build("a.jsonl")
    assert status == 1
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"could not be fetched from the hub's data set {DATASETS[name]} (" in error
    assert "Try again, or put it into a folder yourself" in error
    assert "--natural; --synthetic-only builds without the natural half" in error
    assert not (tmp_path / "a.jsonl").exists()


def test_all_problems_are_reported_at_once(hub: FakeHub) -> None:
    """Renamed files, a forbidden file and a missing commit each give one problem."""
    hub.commits[NEW][DATASETS["math500"]] = {"problems.csv": b""}
    hub.closed = "trivia_qa/resolve"
    with pytest.raises(InvalidInputError) as caught:
        fetch_sources({"alpaca": "2" * 40})
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["QA", "GEN", "MATH"]
    assert "none of its files matches test.jsonl" in caught.value.problems[2]


def test_an_error_without_message_is_reported_by_type(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an error has no message, its type is reported."""

    def time_out(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", time_out)
    with pytest.raises(InvalidInputError, match=r"flan \(TimeoutError\)\. Try again"):
        fetch_sources()


def closed_address() -> str:
    """Return an address where nothing listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("offline", [False, True])
def test_without_the_hub_only_the_synthetic_half_is_built(
    offline: bool,
    hub: FakeHub,
    build: Callable[..., tuple[Any, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With an unreachable hub or HF_HUB_OFFLINE, status 0 and 600 instructions; standard error reports the reason."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setattr(constants, "ENDPOINT", closed_address())
    status, output, err = build("a.jsonl")
    assert status == 0
    assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached: [Errno 111]") in err
    assert "Only the synthetic half is built. To include the natural half, run this where" in err
    assert output.endswith("600 instructions in 6 categories, 600 synthetic\n")
    assert {item.half for item in read_jsonl(tmp_path / "a.jsonl")} == {"synthetic"}
    assert hub.fetched == []


def test_a_requested_commit_needs_the_hub(
    hub: FakeHub, build: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Naming a commit requests the natural half, so an unreachable hub is an error."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, err = build("a.jsonl", "--revision", f"flan={OLD}")
    assert status == 1
    assert err.startswith("error: HF_HUB_OFFLINE is set")
    assert not (tmp_path / "a.jsonl").exists()


def test_a_proxy_that_forbids_counts_as_unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that answers 403 in place of the hub counts as unreachable, and the reason is reported."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403, "Blocked")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Log nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=(POLL,), daemon=True).start()
        with pytest.raises(HubError, match="cannot be reached: 403 Blocked"):
            fetch_sources(endpoint=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
