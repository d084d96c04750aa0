"""`sparcom keys`: in a data folder, and over REST."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fixtures import new_key
from sparcom_cli.keys import keys
from sparcom_cli.serve import serve
from sparcom_data.errors import InvalidInputError, SparcomError
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the variables of the person who runs the tests."""
    for name in ("SPARCOM_API_KEY", "SPARCOM_SERVER"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(keys, [str(argument) for argument in arguments])


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "server"])
def test_keys_are_created_listed_and_revoked(start: Start, client: Start, remote: bool) -> None:
    """A new key is printed alone on stdout and works at once; the list shows no secret; a revoked key is refused."""
    running = start()
    where = ("--data-dir", running.archives.parent)
    if remote:
        where = ("--server", running.url, "--key", new_key(running, "root", "admin"))
    made = run("create", "ann", "--role", "user", "--limit", "tokens-per-day=5000", *where)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert "of ann, role user; it is not shown again" in made.stderr
    ann = client(running, key=key)
    running.wait_for(lambda: ann.get("/v1/archives").status_code == 200)
    assert running.http.get("/v1/archives").status_code == 401
    key_id, secret = key.split("_", 2)[1:]
    listed = run("list", *where)
    line = next(line for line in listed.stdout.splitlines() if line.startswith(key_id))
    assert line.split()[1:3] + line.split()[-1:] == ["ann", "user", "tokens_per_day=5,000"]
    assert secret not in listed.output
    assert run("revoke", key_id, *where).stdout == f"revoked {key_id} of ann\n"
    running.wait_for(lambda: ann.get("/v1/archives").status_code == 401)
    missing = run("revoke", "nope", *where)
    assert isinstance(missing.exception, SparcomError)
    assert "no key has the id 'nope'" in str(missing.exception)


def test_the_first_key_can_come_from_a_client(start: Start) -> None:
    """Without keys, a local server lets everyone create the first one; after that, it asks for one."""
    running = start()
    first = run("create", "root", "--role", "admin", "--server", running.url)
    assert first.exit_code == 0, first.output
    refused = run("list", "--server", running.url)
    assert isinstance(refused.exception, SparcomError)
    assert "a request needs a valid API key" in str(refused.exception)
    assert run("list", "--server", running.url, "--key", first.stdout.strip()).exit_code == 0


def test_a_folder_is_made_only_for_a_new_key(tmp_path: Path) -> None:
    """A mistyped --data-dir is an error, except for the first key."""
    for arguments in (("list",), ("revoke", "x")):
        result = run(*arguments, "--data-dir", tmp_path / "data")
        assert isinstance(result.exception, InvalidInputError)
        assert "has a file sparcom.db" in str(result.exception)
        assert not (tmp_path / "data").exists()
    assert run("create", "ann", "--data-dir", tmp_path / "data").exit_code == 0
    assert run("list", "--data-dir", tmp_path / "data").stdout.splitlines()[1].split()[1] == "ann"


def test_bad_values_are_refused(tmp_path: Path) -> None:
    """Names and limits are checked before anything is stored."""
    result = run("create", "Ann B", "--limit", "requests_per_minute=0", "--data-dir", tmp_path)
    assert isinstance(result.exception, InvalidInputError)
    assert "name: a key's name must have" in str(result.exception)
    assert "limits.requests_per_minute" in str(result.exception)
    for limit in ("x=1", "tokens_per_day", "tokens_per_day=-1", "tokens_per_day=1.5"):
        assert run("create", "ann", "--limit", limit, "--data-dir", tmp_path).exit_code == 2
    assert run("list", "--data-dir", tmp_path).stdout.count("\n") == 1


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> ServerSettings:
    """Return the settings that `sparcom serve` starts with."""
    seen: list[ServerSettings] = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sparcom_server.run.run_server", lambda _, settings: seen.append(settings))
    monkeypatch.setattr("sparcom_cli.serve._require_engine", lambda: None)
    monkeypatch.setattr("sparcom_extractor.launch.listed.check_model", lambda _: None)
    result = CliRunner().invoke(serve, ["--model", "m", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_serve_has_options_for_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """Origins, limits and anonymous access become settings; a limit that is not given keeps its default."""
    settings = served(
        monkeypatch, "--cors-origin", "https://a.example", "--limit", "event-streams=7", "--allow-anonymous"
    )
    assert (settings.cors_origins, settings.allow_anonymous) == (("https://a.example",), True)
    assert settings.key_limits == ServerSettings().key_limits.model_copy(update={"event_streams": 7})
    settings = served(monkeypatch, SPARCOM_CORS_ORIGINS="https://a.example https://b.example")
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.key_limits == ServerSettings().key_limits
    with pytest.raises(InvalidInputError, match="an origin must be scheme, host"):
        served(monkeypatch, "--cors-origin", "*")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [(None, False), ("", False), ("127.0.0.1", True), ("0.0.0.0", False), ("192.168.0.4", False)],  # noqa: S104
)
def test_a_published_address_decides_about_anonymous_access(
    monkeypatch: pytest.MonkeyPatch, address: str | None, allowed: bool
) -> None:
    """A container whose port is published on loopback needs no key, any other does."""
    environment = {} if address is None else {"SPARCOM_PUBLISHED_ADDRESS": address}
    assert served(monkeypatch, "--host", "0.0.0.0", **environment).allow_anonymous is allowed  # noqa: S104
