"""One key cannot see, read, cancel, delete or guess the jobs, archives and files of another, by any route."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import product
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from fake_engine import FakeEngine
from helpers import instructions

Start = Callable[..., Any]
HIDDEN = "kept-from-others"  # in texts, metadata and names of Ben's
NAMES = (
    "{archive}", "{owner}~{archive}", "{owner}%7E{archive}", "{owner}%7e{archive}", "~{archive}", "%7E{archive}",
    "ann~{archive}", "ann~{owner}~{archive}", "../{owner}~{archive}", "..%2F{owner}~{archive}", "./{owner}~{archive}",
    "{owner}~{archive}.zarr", "{owner}~{archive}%00", "{owner}~{archive}%2Fzarr.json", "mine/../{owner}~{archive}",
    "{owner}/{archive}", "{owner}%EF%BD%9E{archive}", "mine",
)  # fmt: skip
KEYS = (
    "zarr.json", "instruction/text/zarr.json", "../{owner}~{archive}.zarr/zarr.json", "report.html",
    "..%2F{owner}~{archive}.zarr%2Fzarr.json", "%2e%2e/{owner}~{archive}.zarr/zarr.json", "../{job}/report.html",
    "{folder}/archives/{owner}~{archive}.zarr/zarr.json", "../../sparcom.db",
)  # fmt: skip
JSONL = {"Content-Type": "application/jsonl"}
IDS = ("{0}", "{0}%2F", "./{0}", "../extractions/{0}", "{0}%00", "{0}?x={0}", "{0}/")
VALUES = {
    "name": NAMES,
    "key": KEYS,
    "job_id": tuple(value.format("{job}") for value in IDS),
    "file_id": tuple(value.format("{file}") for value in IDS),
    "key_id": tuple(value.format("{key_id}") for value in IDS),
}


@dataclass
class Case:
    """Ben has a complete archive and one that is being written; Ann has `mine` and tries to reach Ben's."""

    running: Any
    ann: httpx.Client
    ben: httpx.Client
    admin: httpx.Client
    real: tuple[dict[str, str], ...]  # names and ids of Ben's
    absent: dict[str, str]  # equally long ones that do not exist

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None
    ) -> tuple[int, str, dict[str, str]]:
        """Send a request of Ann's with this very path; return status, body and headers without the names asked for."""
        host, port = self.running.url.removeprefix("http://").split(":")
        connection = HTTPConnection(host, int(port), timeout=20)
        own = {"Authorization": self.ann.headers["Authorization"]}
        connection.request(method, path, body, headers=own | (headers or {}))
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        assert HIDDEN not in text, path
        assert str(self.running.archives.parent) not in text.replace(path, "").replace(quote(path), ""), path
        kept = {name: self.blank(value) for name, value in answer.getheaders() if name not in {"date", "x-request-id"}}
        connection.close()
        return answer.status, self.blank(text), kept

    def blank(self, text: str) -> str:
        """Replace names and ids, so that answers about Ben's and about nobody's can be compared."""
        for values in (*self.real, self.absent):
            for kind in ("archive", "owner", "job", "file", "key_id"):
                text = text.replace(values[kind], kind)
        return text

    def state(self) -> list[Any]:
        """Return all that Ben has."""
        kept = {"progress", "archives", "revision"}
        jobs = [
            {k: v for k, v in job.items() if k not in kept} for job in self.ben.get("/v1/extractions").json()["data"]
        ]
        names = [entry["name"] for entry in self.ben.get("/v1/archives").json()["data"]]
        files = self.ben.get("/v1/files").json()["data"]
        return [jobs, names, files, self.admin.get("/v1/keys").json()["data"][0]["revoked"]]


@pytest.fixture
def case(start: Start, client: Start) -> Iterator[Case]:
    """Start a server for which all this holds."""
    engine = FakeEngine()
    running = start(engine)
    admin, ann, ben = client(running, "root", "admin"), client(running, "ann"), client(running, "benben")
    secret = [item | {"text": f"{HIDDEN} {item['text']}"} for item in instructions(3)]

    def submit(http: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
        answer = http.post("/v1/extractions", json={"instructions": secret, "archive": name, **fields})
        assert answer.status_code == 202, answer.text
        report: dict[str, Any] = answer.json()
        return report

    lines = "\n".join(map(json.dumps, secret))
    about = {"metadata": {"project": HIDDEN}, "dataset": {"name": HIDDEN}}
    jobs = [submit(ben, "secret", **about), submit(ann, "mine")]
    running.wait_for(lambda: all(admin.get(f"/v1/extractions/{job['id']}").json()["finished"] for job in jobs))
    engine.pause = 30
    jobs.append(submit(ben, "inwork", **about))
    running.wait_for(lambda: admin.get(f"/v1/extractions/{jobs[2]['id']}").json()["state"] == "running")
    ids = {"owner": "benben", "key_id": ben.headers["Authorization"].split("_")[1]}
    ids["file"] = ben.post("/v1/files", params={"filename": HIDDEN}, content=lines, headers=JSONL).json()["id"]
    ids["folder"] = str(running.archives.parent)
    real = tuple(ids | {"archive": job["archive"], "job": job["id"]} for job in (jobs[0], jobs[2]))
    absent = {"owner": "nobody", "key_id": "2" * 16, "file": "file-" + "1" * 24, "archive": "absent", "job": "0" * 24}
    absent["folder"] = ids["folder"]
    return Case(running, ann, ben, admin, real, absent)


def test_no_route_tells_another_keys_things_from_absent_ones(case: Case) -> None:
    """Every route with a path parameter answers the same for Ben's names and ids as for absent ones, and changes
    nothing of Ben's."""
    before, asked = case.state(), 0
    api = case.running.http.get("/openapi.json").json()
    for path, methods in api["paths"].items():
        parameters = re.findall(r"\{(\w+)\}", path)
        for method, real in product(methods, case.real):
            if not parameters or method == "post":
                continue
            for values in product(*(VALUES[name] for name in parameters)):
                if method == "delete" and "mine" in values:
                    continue  # Ann's own
                address = path.format(**dict(zip(parameters, values, strict=True)))
                theirs = case.ask(method.upper(), address.format(**real))
                nobodys = case.ask(method.upper(), address.format(**case.absent))
                assert theirs == nobodys, f"{method} {address}"
                asked += 1
    assert asked > 500
    assert case.state() == before
    assert case.ben.get("/v1/archives/secret").json()["instructions"]["complete"] == 3


HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"If-None-Match": "*"},
    {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
    {"Range": "bytes=0-1"},
    {"Range": "bytes=999999999-"},
    {"Last-Event-ID": "1", "Accept": "text/event-stream"},
    {"Idempotency-Key": "first"},
)


def test_no_method_and_no_header_tells_them_either(case: Case) -> None:
    """Neither HEAD, PUT, PATCH and OPTIONS nor conditions, ranges and event ids are answered otherwise for Ben's."""
    asked = set[int]()
    api = case.running.http.get("/openapi.json").json()
    paths = [path for path in api["paths"] if "{" in path]
    for path, method, headers, real in product(
        paths, ("GET", "HEAD", "PUT", "PATCH", "OPTIONS", "POST"), HEADERS, case.real
    ):
        values = {name: VALUES[name][0] for name in re.findall(r"\{(\w+)\}", path)}
        address = path.format(**values)
        theirs = case.ask(method, address.format(**real), headers)
        assert theirs == case.ask(method, address.format(**case.absent), headers), f"{method} {address} {headers}"
        asked.add(theirs[0])
    assert asked <= {404, 405, 415, 422}


def test_a_submission_tells_nothing_of_other_keys(case: Case) -> None:
    """Names that Ben's jobs hold, his idempotency key with his very request, and his files give Ann what absent ones
    give: a job of her own, or the same error. Her own held name is a 409 that names her job alone."""
    request = json.dumps({"instructions": instructions(2), "archive": "fresh"})
    headers = {"Content-Type": "application/json", "Idempotency-Key": "shared"}
    theirs = case.ben.post("/v1/extractions", content=request, headers=headers).json()
    status, text, kept = case.ask("POST", "/v1/extractions", headers, request)
    own = json.loads(text)
    assert (status, own["owner"], "idempotent-replayed" in kept) == (202, "ann", False)
    assert own["id"] != theirs["id"]
    assert case.ask("POST", "/v1/extractions", headers, request)[2]["idempotent-replayed"] == "true"
    headers = {"Content-Type": "application/json"}
    for name in NAMES:
        found = []
        for ids in (case.real[1], case.absent):
            body = json.dumps({"instructions": instructions(1), "archive": name.format(**ids)})
            found.append(case.ask("POST", "/v1/extractions", headers, body))
        if found[0][0] == 202:  # the jobs differ in ids and times alone
            assert [json.loads(answer[1])["archive"] for answer in found] == ["archive", "archive"]
            continue
        assert found[0] == found[1], name
        assert found[0][0] == (409 if name == "mine" else 422), name
    status, text, _ = case.ask("POST", "/v1/extractions", headers, request)
    assert status == 409
    assert own["id"] in text
    assert theirs["id"] not in text
    assert "benben" not in text


def test_lists_show_only_ones_own(case: Case) -> None:
    """Lists have Ann's entries only, whatever the filter; Ben's ids as `after` are refused like absent ones."""
    lists = {"/v1/extractions": "job", "/v1/archives": "archive", "/v1/files": "file"}
    sizes = {"job": (1, 2, 3), "archive": (1, 2, 3), "file": (0, 1, 1)}
    for path, kind in lists.items():
        for query in ("", "?limit=1000", "?state=running", "?metadata=project:" + HIDDEN, "?model=fake"):
            for entry in case.ann.get(path + query).json()["data"]:
                assert entry["archive" if kind == "job" else "name"] == "mine", path + query
        for http, size in zip((case.ann, case.ben, case.admin), sizes[kind], strict=True):
            assert len(http.get(path).json()["data"]) == size
        for real in case.real:
            for after in (real[kind], f"benben~{real[kind]}"):
                theirs = case.ask("GET", f"{path}?after={after}")
                assert theirs == case.ask("GET", f"{path}?after={after.replace(real[kind], case.absent[kind])}")
                assert theirs[0] in {404, 422}
    assert case.ask("GET", "/metrics")[0] == 403


def test_names_are_free_for_each_key(case: Case) -> None:
    """Ann may use Ben's archive names and idempotency keys, and gets jobs and archives of her own."""
    body = {"instructions": instructions(1)}
    for name in ("secret", "inwork", "absent"):
        answer = case.ann.post("/v1/extractions", json=body | {"archive": name}, headers={"Idempotency-Key": "k"})
        answers = [answer, case.ben.post("/v1/extractions", json=body, headers={"Idempotency-Key": name})]
        assert [found.status_code for found in answers] == ([202, 202] if name == "secret" else [422, 202])
    for name in ("inwork", "absent"):
        assert case.ann.post("/v1/extractions", json=body | {"archive": name}).status_code == 202
    assert case.ann.post("/v1/extractions", json=body, headers={"Idempotency-Key": "inwork"}).status_code == 202
    assert case.ann.delete("/v1/archives/mine").status_code == 204
    assert case.ben.get("/v1/archives/secret").status_code == 200
    theirs, nobodys = [
        case.ann.post("/v1/extractions", json={"input_file_id": ids["file"]}) for ids in (case.real[0], case.absent)
    ]
    assert (theirs.status_code, case.blank(theirs.text)) == (404, case.blank(nobodys.text))
    for name in ("benben~new", "~new", "ann~new", "a/b"):
        answer = case.ann.post("/v1/extractions", json=body | {"archive": name})
        assert answer.status_code == 422, name


def test_an_admin_sees_all(case: Case) -> None:
    """An admin reaches archives as OWNER~NAME and all jobs, with paths; owners see no path."""
    archive = case.admin.get("/v1/archives/benben~secret").json()
    assert (archive["name"], archive["owner"]) == ("benben~secret", "benben")
    assert archive["path"] == str(case.running.archives / "benben~secret.zarr")
    assert case.admin.get("/v1/archives/benben%7Esecret/zarr/zarr.json").status_code == 200
    assert case.admin.get("/v1/archives/secret").status_code == 404
    own = case.ben.get("/v1/archives/secret").json()
    assert (own["name"], own["path"]) == ("secret", None)
    job = case.ben.get(f"/v1/extractions/{case.real[0]['job']}").json()
    assert (job["archive"], job["archive_path"], job["archives"][0]["path"]) == ("secret", None, None)
    assert str(case.running.archives) not in case.ben.get("/v1/extractions").text
    assert case.admin.delete(f"/v1/extractions/{case.real[1]['job']}").status_code in {200, 202}


def test_messages_hide_paths(case: Case) -> None:
    """A damaged archive is described with its path to an admin, by its name to its owner."""
    (case.running.archives / "benben~secret.zarr" / "zarr.json").write_text("{")
    for route, field in (("/v1/archives/{}secret", "detail"), ("/v1/archives", "data")):
        owner = str(case.ben.get(route.format("")).json()[field])
        admin = str(case.admin.get(route.format("benben~")).json()[field])
        assert str(case.running.archives) in admin
        assert str(case.running.archives.parent) not in owner
        assert "secret.zarr" in owner
        assert "benben~" not in owner
