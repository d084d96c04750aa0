"""`sparcom verify` and `sparcom analyze` of an archive by its address on a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data.testing import write_random_archive


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def server(start: Callable[..., Any]) -> Any:
    """Return a server with one archive of random masks; its folder is `server.folder`, its address `server.zarr`."""
    running = start()
    running.archives.mkdir(parents=True, exist_ok=True)
    running.folder = running.archives / "rand.zarr"
    write_random_archive(running.folder)
    running.zarr = f"{running.url}/v1/archives/rand/zarr"
    return running


def test_verify_takes_an_address(
    server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checks are those from disk; damage is found, and a missing archive is an error with the address."""
    assert run(monkeypatch, "verify", server.zarr, "--no-tokenizer") == 0
    assert capsys.readouterr().out.endswith(f"{server.zarr}: nothing wrong was found\n")
    (server.folder / "neuron/active/c.1.0.0").unlink()
    assert run(monkeypatch, "verify", server.zarr, "--no-tokenizer") == 1
    assert "chunk c.1.0.0 of array neuron/active" in capsys.readouterr().out
    assert run(monkeypatch, "verify", server.zarr.replace("rand", "none"), "--no-tokenizer") == 1
    assert f"there is no archive at {server.url}/v1/archives/none/zarr" in capsys.readouterr().err


def test_analyze_takes_an_address(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metrics over HTTP equal those of the folder."""
    settings = ["--epsilon", "0.1", "--resamples", "0", "--permutations", "0"]
    for archive, output in ((server.zarr, "http"), (server.folder, "disk")):
        assert run(monkeypatch, "analyze", archive, *settings, "--output", tmp_path / output) == 0
    http, disk = capsys.readouterr().out.split("report: ")[:2]
    assert http.splitlines()[1:5] == disk.splitlines()[2:6]
