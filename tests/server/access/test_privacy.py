"""Privacy: modes of files, no keys in logs, no paths in messages for users."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine, FakeExtraction
from sparcom_data.archive import open_archive
from sparcom_data.errors import StorageError
from sparcom_server.access.gate import Gate
from sparcom_server.access.keys import list_keys
from sparcom_server.access.principal import ANONYMOUS, Principal
from sparcom_server.database.database import Database, database_url
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]
ANN = Principal("ann", "user", "id")
NO_BOS = "the tokenizer of models has no BOS"


def test_no_log_holds_a_key(process: Start) -> None:
    """Neither a valid key nor a wrong one is logged, at the highest level of detail."""
    running = process()
    key = running.http.post("/v1/keys", json={"name": "ann", "role": "admin"}).json()["key"]
    for value in (f"Bearer {key}", f"Bearer {key[:-1]}!"):
        for path in ("/v1/archives", "/v1/extractions/none", "/v1/keys", "/metrics"):
            httpx.get(running.url + path, headers={"Authorization": value})
    httpx.post(running.url + "/v1/extractions", content=b"{", headers={"Authorization": f"Bearer {key}"})
    assert key.split("_", 2)[2][:20] not in running.log.read_text()
    database = Database(database_url(running.data))
    assert len(database.transaction(lambda session: list_keys(session, 10)).data) == 1
    database.close()


def test_only_the_owner_reads_the_data_folder(process: Start) -> None:
    """Under any umask, all files have mode 0600 and all folders 0700: database, archives, whatever else is there."""
    before = os.umask(0)
    try:
        running = process()
    finally:
        os.umask(before)
    status = Path(f"/proc/{running.popen.pid}/status").read_text()
    assert "Umask:\t0077" in status, "also for what libraries and the analysis write"
    body = {"instructions": [{"id": "a", "text": "x"}], "archive": "a"}
    job = running.http.post("/v1/extractions", json=body).json()
    running.wait_for(lambda: running.http.get(f"/v1/extractions/{job['id']}").json()["finished"])
    found = list(running.data.rglob("*"))
    assert {running.data / "sparcom.db", running.data / "sparcom.db-wal", running.data / "archives" / "a.zarr"} <= {
        *found
    }
    modes = {path: path.stat().st_mode & 0o777 for path in (running.data, *found)}
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a chunk of DATA/archives/ann~a.zarr/neuron/active is damaged", "a chunk of a.zarr/neuron/active is damaged"),
        (
            "another process writes DATA/archives/ann~a.zarr. Stop it first",
            "another process writes a.zarr. Stop it first",
        ),
        ("no space for '/mnt/other/~b.zarr.12.partial'", "no space for 'b.zarr.12.partial'"),
        ("the model '/srv/models/org/base-7b' did not start", "the model 'base-7b' did not start"),
        ("writing /tmp/x/y.json: denied (errno 13)", "writing y.json: denied (errno 13)"),
        ("the database sqlite:///DATA/sparcom.db cannot", "the database sqlite:////sparcom.db cannot"),
        ("Cancel it first: DELETE /v1/extractions/0123", "Cancel it first: DELETE /v1/extractions/0123"),
        ("Open http://h:8000/v1/archives/a/zarr instead", "Open http://h:8000/v1/archives/a/zarr instead"),
        ("its address ends in /zarr; GET /v1/archives lists", "its address ends in /zarr; GET /v1/archives lists"),
        ("1/2 of 3/4/5 and text/plain", "1/2 of 3/4/5 and text/plain"),
        ("Permission denied: '/srv/my models/base 7b'", "Permission denied: 'base 7b'"),
        ("'/srv/a' -> '/srv/b c/d'", "'a' -> 'd'"),
        ("FileNotFoundError:/srv/models/base", "FileNotFoundError:base"),
        ("sqlite:////srv/data/sparcom.db is locked", "sqlite:///sparcom.db is locked"),
        ("it's at file:///srv/models/base, isn't it", "it's at file://base, isn't it"),
    ],
)
def test_messages_hide_paths(tmp_path: Path, message: str, shown: str) -> None:
    """Users read names in place of absolute paths; admins read paths; addresses and routes stay."""
    folder = tmp_path / "my data"
    database = Database(database_url(folder))
    gate = Gate(database, ServerSettings(data_dir=folder))
    database.close()
    message = message.replace("DATA", str(folder))
    assert gate.hide_paths(message, ANN) == shown
    assert gate.hide_paths(message, None) == shown, "before the client is known"
    assert gate.hide_paths(message, ANONYMOUS) == message


class Talkative(FakeEngine):
    """Names paths of the server in warnings and in reasons of instructions; its second job fails with one."""

    def prepare(self, *arguments: Any, **options: Any) -> FakeExtraction:
        """Fail the first instruction."""
        path = arguments[2]
        options["failures"] = {0: f"chunk {path}/neuron/active/c.0 is damaged; see '/srv/my logs/engine log'"}
        self.warnings = [f"the tokenizer of {path.parent}/models has no BOS"]
        if self.committed:
            raise StorageError(f"writing {path}/zarr.json failed")
        self.models = path.parent / "models"
        return super().prepare(*arguments, **options)

    def plan(self, *arguments: Any) -> Any:
        """Store the path of the model, and a warning with a path."""
        attributes, *rest = super().plan(*arguments)
        model = attributes.model.model_copy(update={"id": str(self.models / "base")})
        return attributes.model_copy(update={"model": model, "warnings": self.warnings}), *rest


def test_users_read_no_path_of_the_server(start: Start, client: Start) -> None:
    """Neither reports, lists, events nor reasons of instructions hold one; admins read them all."""
    running = start(Talkative())
    admin, ann = client(running, "root", "admin"), client(running, "ann")
    body = {"instructions": [{"id": "a", "text": "x"}, {"id": "b", "text": "x"}]}
    jobs = [ann.post("/v1/extractions", json=body | {"archive": name}).json()["id"] for name in "mn"]
    running.wait_for(lambda: all(ann.get(f"/v1/extractions/{job}").json()["finished"] for job in jobs))
    path = str(running.archives)
    routes = ["/v1/extractions", "/v1/archives", "/v1/archives/{}m", "/v1/models", "/ready", "/health"]
    routes += [f"/v1/extractions/{job}{part}" for job in jobs for part in ("", "/errors", "/results", "/events")]
    for route in routes:
        text = ann.get(route.format("")).text
        assert path not in text, route
        assert "/srv/" not in text, route
    reasons = [f"/v1/extractions/{jobs[0]}", f"/v1/extractions/{jobs[0]}/errors", f"/v1/extractions/{jobs[1]}"]
    assert all(path in admin.get(route).text for route in reasons)
    assert "chunk m.zarr/neuron/active/c.0 is damaged; see 'engine log'" in ann.get(reasons[0]).text
    assert "chunk m.zarr/neuron/active/c.0 is damaged; see 'engine log'" in ann.get(reasons[1]).text
    assert ann.get(reasons[0]).json()["warnings"] == [NO_BOS]
    assert ann.get(reasons[2]).json()["error"]["message"] == "writing n.zarr/zarr.json failed"


def test_archives_of_keys_hold_no_path(start: Start, client: Start) -> None:
    """Neither a store nor what is made from it can show one to a user. Without keys, the path of the model is kept."""
    running = start(Talkative())
    open_one = running.post(1, archive="o").json()
    running.wait(open_one["id"])
    ann = client(running, "ann")
    job = ann.post("/v1/extractions", json={"instructions": [{"id": "a", "text": "x"}], "archive": "m"}).json()
    running.wait_for(lambda: ann.get(f"/v1/extractions/{job['id']}").json()["finished"])
    path, headers = str(running.archives), {"Authorization": ann.headers["Authorization"]}
    found = [open_archive(running.archives / f"{name}.zarr").attributes for name in ("o", "ann~m")]
    assert [one.model.id for one in found] == [f"{path}/models/base", "base"]
    assert [one.warnings for one in found] == [[f"the tokenizer of {path}/models has no BOS"], [NO_BOS]]
    address = f"{running.url}/v1/archives/m/zarr"
    assert path not in ann.get(f"{address}/zarr.json").text
    assert open_archive(address, headers=headers).attributes == found[1]
