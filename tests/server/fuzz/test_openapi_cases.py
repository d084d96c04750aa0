"""Requests that schemathesis makes from openapi.json get documented answers, whoever sends them.

SPARCOM_CASES=10000 sends at least so many requests, in some minutes; by default a few hundred per kind of client.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from helpers import instructions

CASES = int(os.environ.get("SPARCOM_CASES", "0"))
EXAMPLES = 40 if CASES else 4  # per operation and round
LINES = "\n".join(map(json.dumps, instructions(3)))
BATCH = {"instructions": instructions(3)}
# Rules that a schema cannot state: ids are unique, `chat` needs messages, a line of a file is an instruction.
BEYOND_SCHEMAS = {"POST /v1/extractions", "POST /v1/files"}


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def encode_lines(_: Any, value: Any) -> bytes:
    """Return the bytes of a generated body: text as it is, anything else as JSON."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogatepass")


class World:
    """A server with jobs, archives, files and keys, some to keep and some that requests may delete."""

    def __init__(self, running: Any, access: str) -> None:
        self.headers: dict[str, str] = {}
        self.kept, self.doomed = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        if access != "nobody":
            self._use_key(running, "admin")
            if access == "user":
                self.doomed["key_id"] += [self._new_key(running, "ann", "user")["id"] for _ in range(4)]
                self._use_key(running, "user")
        self.client = httpx.Client(base_url=running.url, timeout=20, headers=self.headers)
        for pool, count in ((self.kept, 2), (self.doomed, 6)):
            for _ in range(count):
                job = self.client.post("/v1/extractions", json=BATCH).json()
                sent = self.client.post("/v1/files", content=LINES, headers={"Content-Type": "application/jsonl"})
                pool["job_id"].append(job["id"])
                pool["name"].append(job["archive"])
                pool["file_id"].append(sent.json()["id"])
        if access == "admin":
            self.doomed["key_id"] += [self._new_key(running, "ann", "user")["id"] for _ in range(4)]
        running.wait_for(lambda: self.client.get(f"/v1/extractions/{self.doomed['job_id'][-1]}").json()["finished"])
        for job_id in self.kept["job_id"]:
            report = running.data / "analyses" / job_id / "report.html"
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text("<p>report</p>")

    def _new_key(self, running: Any, name: str, role: str) -> dict[str, Any]:
        body = {"name": name, "role": role}
        new: dict[str, Any] = httpx.post(f"{running.url}/v1/keys", json=body, headers=self.headers).json()
        return new

    def _use_key(self, running: Any, role: str) -> None:
        key = self._new_key(running, f"own-{role}", role)
        self.kept["key_id"].append(key["id"])
        self.headers = {"Authorization": f"Bearer {key['key']}"}

    def real(self, operation: Any) -> Any:
        """Return a strategy of parameters of the path that exist."""
        keys = ["report.html"] if "analysis" in operation.path else ["zarr.json", "instruction/id/zarr.json"]
        pool = (self.doomed if operation.method.upper() == "DELETE" else self.kept) | {"key": keys}
        names = [item.name for item in operation.path_parameters]
        if not all(pool.get(name) for name in names):
            return st.nothing()
        return st.fixed_dictionaries({name: st.sampled_from(pool[name]) for name in names})

    def bodies(self, path: str, body: Any) -> list[Any]:
        """Return a generated body, and some like it that name what exists."""
        if path == "/v1/files":
            return [body, {"file": LINES} if isinstance(body, dict) else LINES]
        if path != "/v1/extractions" or not isinstance(body, dict):
            return [body]
        real = {"model": "fake", "tuned": None, "input_file_id": self.kept["file_id"][0]}
        batch = {name: value for name, value in body.items() if name not in real} | BATCH
        return [body, body | {name: value for name, value in real.items() if body.get(name)}, batch]


def replace_parts(case: Any, path: Any, body: Any) -> Any:
    """Return a case with these parameters of the path and this body."""
    case.path_parameters, case.body = path, body
    return case


def steer(schema: Any, world: World, answers: dict[str, Counter[int]]) -> None:
    """Use what exists in about half of the requests; keep what others need."""

    @schema.hook  # type: ignore[untyped-decorator]
    def flatmap_case(_: Any, case: Any) -> Any:
        if case.meta.generation.mode.is_negative:
            return st.just(case)
        return st.builds(
            lambda path, body: replace_parts(case, path, body),
            world.real(case.operation) | st.just(case.path_parameters),
            st.sampled_from(world.bodies(case.operation.path, case.body)),
        )

    @schema.hook  # type: ignore[untyped-decorator]
    def filter_case(_: Any, case: Any) -> bool:
        kept = {value for values in world.kept.values() for value in values}
        return case.method.upper() != "DELETE" or kept.isdisjoint(map(str, (case.path_parameters or {}).values()))

    @schema.hook  # type: ignore[untyped-decorator]
    def after_call(_: Any, case: Any, response: Any) -> None:
        answers[case.operation.label][response.status_code] += 1


def load(world: World, url: str, access: str, number: int) -> Any:
    """Return the server's document, set up for one round."""
    checks: dict[str, Any] = {
        "ignored_auth": {"enabled": access != "nobody"},
        "ensure_resource_availability": {"enabled": False},  # it overlooks deletions by an earlier step
        "use_after_free": {"enabled": False},  # it takes the cancellation of a job for its deletion
        "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", 403, 404, 409, 416, 429]},
    }
    config = SchemathesisConfig.from_dict(
        {
            "headers": world.headers,
            "seed": number,
            "request-timeout": 10,
            "max-stream-events": 3,
            "continue-on-failure": True,
            "checks": checks,
            "phases": {"coverage": {"enabled": not number}},  # the same in each round
            "generation": {
                "max-examples": EXAMPLES,
                "database": "none",
                "no-shrink": True,
                "with-security-parameters": access != "nobody",
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config, headers=world.headers)
    if access == "nobody":  # the first key would refuse all that follows
        schema = schema.exclude(path="/v1/keys", method="POST")
    return schema


def problems_of(schema: Any) -> list[str]:
    """Send one round of requests; return what is wrong with the answers, each problem once."""
    problems = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            for case_id, checks in event.recorder.checks.items():
                label = event.recorder.cases[case_id].value.operation.label
                for check in checks:
                    if check.name == "positive_data_acceptance" and label in BEYOND_SCHEMAS:
                        continue
                    if found := check.failure_info:
                        title = f"{label}: {check.name}: {found.failure.title}"
                        problems.append(f"{title}\n{found.failure.message}\n{found.code_sample}")
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems.append(f"error of the test: {getattr(event, 'label', '')}: {event}")
    return list(dict.fromkeys(problems))


@pytest.mark.slow
@pytest.mark.timeout(3600 if CASES else 300)
@pytest.mark.parametrize("access", ["nobody", "user", "admin"])
def test_every_answer_is_documented(
    process: Callable[..., Any], access: str, record_property: Callable[[str, object], None]
) -> None:
    """No answer is a server error; status, type, headers and body are as openapi.json says.

    Each route succeeds at least once for clients who may use it.
    """
    running = process(event_seconds=0.01, keep_alive_seconds=0.2, max_queued_jobs=20)
    world, answers, number = World(running, access), defaultdict[str, Counter[int]](Counter), 0
    world.client.close()
    while not number or sum(map(Counter.total, answers.values())) < CASES / 3:
        schema = load(world, running.url, access, number)
        steer(schema, world, answers)
        assert not (found := problems_of(schema)), "\n\n".join(found[:20])
        number += 1
    record_property("cases", sum(map(Counter.total, answers.values())))
    refused = {label for label, counts in answers.items() if not any(status < 300 for status in counts)}
    may_be = {"DELETE /v1/extractions/{job_id}"}  # the jobs have ended
    if access != "admin":
        may_be |= {label for label in answers if "/v1/keys" in label or (access == "user" and "/metrics" in label)}
    assert refused <= may_be, {label: dict(answers[label]) for label in refused - may_be}
    assert running.http.get("/health").status_code == 200
    assert "Traceback" not in running.log.read_text()
