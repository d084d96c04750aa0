"""The address of an archive leads only to this archive, never through a link or to a later archive of that name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_analysis import analyze
from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveNotFoundError, DamagedArchiveError
from sparcom_data.testing import write_random_archive
from sparcom_data.verify import verify_archive

Start = Callable[..., Any]


@pytest.mark.parametrize(
    "inner", ["neuron", "instruction", "instruction/category/c", "instruction/state/c/0", "zarr.json"]
)
def test_no_route_follows_a_link_inside_an_archive(start: Start, tmp_path: Path, inner: str) -> None:
    """Files, facts and the list never follow links."""
    running = start()
    secret, path = tmp_path / "secret.zarr", running.archives / "m.zarr"
    write_random_archive(secret, categories=("SECRET", "CODE"))
    write_random_archive(path)
    target = path / inner
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.symlink_to(secret / inner)
    for file in (
        [secret / inner] if (secret / inner).is_file() else [f for f in (secret / inner).rglob("*") if f.is_file()]
    ):
        key = f"{inner}/{file.relative_to(secret / inner)}" if file != secret / inner else inner
        assert running.http.get(f"/v1/archives/m/zarr/{key}").status_code == 404, key
    answers = running.http.get("/v1/archives").text + running.http.get("/v1/archives/m").text
    assert "SECRET" not in answers
    if inner.startswith("instruction"):
        assert running.http.get("/v1/archives/m").status_code in {404, 500}


def test_a_reader_of_an_address_does_not_mix_two_archives(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the archive is replaced under a reader, the next read is an error."""
    monkeypatch.setattr("sparcom_data.archive.REMOTE_CHECK_SECONDS", 0.0)
    running = start()
    address = running.wait(running.post(archive="m").json()["id"])["links"]["zarr"]
    archive = open_archive(address)
    assert archive.read_active(0, 8).any()
    running.http.delete("/v1/archives/m")
    for read in (lambda: archive.read_active(0, 8), archive.require_same):
        with pytest.raises(ArchiveNotFoundError, match="was removed"):
            read()
    running.wait(running.post(archive="m").json()["id"])
    for read in (lambda: archive.read_active(0, 8), archive.require_same):
        with pytest.raises(DamagedArchiveError, match="another archive took the place"):
            read()
    np.testing.assert_array_equal(open_archive(address).instructions.state, [1] * 3)


@pytest.mark.parametrize("command", ["analyze", "verify"])
def test_a_command_over_an_address_reads_one_archive(
    command: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another archive takes the name after the last read, the command fails without results."""
    monkeypatch.setattr("sparcom_data.archive.REMOTE_CHECK_SECONDS", 1e9)
    running = start()
    write_random_archive(running.archives / "m.zarr")
    write_random_archive(tmp_path / "other.zarr")  # same shape, so every chunk exists

    def replace(*_: float) -> None:
        if (tmp_path / "other.zarr").exists():
            assert running.http.delete("/v1/archives/m").status_code == 204
            (tmp_path / "other.zarr").rename(running.archives / "m.zarr")

    address = f"{running.url}/v1/archives/m/zarr"
    run = {
        "verify": lambda: verify_archive(open_archive(address), None, replace),
        "analyze": lambda: analyze(address, top=0.5, n_resamples=0, n_permutations=0, progress=replace),
    }[command]
    with pytest.raises(DamagedArchiveError, match="another archive took the place"):
        run()
    assert not (tmp_path / "other.zarr").exists()
