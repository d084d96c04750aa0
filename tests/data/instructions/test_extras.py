"""An error about a missing extra gives a command that works for this installation."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from sparcom_data import extras

# direct_url.json as pip writes it, and the command.
ORIGINS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "editable": (
        {"url": "file:///home/me/my%20work/sparcom", "dir_info": {"editable": True}},
        "pip install --editable '/home/me/my work/sparcom[analysis]'",
    ),
    "a folder": ({"url": "file:///src/sparcom", "dir_info": {}}, "pip install '/src/sparcom[analysis]'"),
    "git": (
        {"url": "https://example.org/sparcom.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
        "pip install 'sparcom[analysis] @ git+https://example.org/sparcom.git'",
    ),
    "git, a branch": (
        {"url": "https://example.org/s", "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "dev"}},
        "pip install 'sparcom[analysis] @ git+https://example.org/s@dev'",
    ),
    "a wheel": (
        {"url": "file:///tmp/sparcom.whl", "archive_info": {}},
        "pip install '.[analysis]' in the folder of SPARCOM's sources",
    ),
    "no record": (None, "pip install '.[analysis]' in the folder of SPARCOM's sources"),
}


class Installed:
    """Fake an installed distribution with this direct_url.json."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


@pytest.mark.parametrize("case", ORIGINS)
def test_the_command_fits_the_installation(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation stays editable; a copy is installed from its origin."""
    origin, expected = ORIGINS[case]
    monkeypatch.setattr(extras, "distribution", lambda _: Installed(origin))
    assert extras.install_command("analysis") == expected


def test_sources_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package put on the path by hand is installed from its folder."""

    def absent(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(extras, "distribution", absent)
    assert extras.install_command("analysis,client").startswith("pip install '.[analysis,client]'")
