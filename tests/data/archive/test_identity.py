"""Writers and readers never confuse two archives, whatever happens to a folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sparcom_data import create, storage
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import (
    ArchiveError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    DamagedArchiveError,
    NotAnArchiveError,
    StorageError,
)
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.storage.identity import PinnedArchive
from sparcom_data.testing import random_attributes, write_random_archive

Columns = Callable[..., InstructionColumns]
Tree = Callable[[Path], dict[str, bytes]]
GOLDEN = Path(__file__).parents[1] / "golden" / "v1.zarr"
LENGTHS = [5, 3, 7]


def make(path: Path, columns: Columns) -> tuple[PinnedArchive, Layout]:
    layout = plan_layout(LENGTHS, "prompt", 0)
    return create_archive(path, random_attributes(1, 8), columns(3), layout), layout


def items(layout: Layout) -> list[CompletedInstruction]:
    rows = [np.arange(size, dtype=np.int32) for size in LENGTHS]
    return [CompletedInstruction(k, int(layout.token_start[k]), rows[k], rows[k], "answer") for k in range(3)]


def write_all(committer: ArchiveCommitter, layout: Layout) -> None:
    """Write everything that a job writes through a committer."""
    committer.complete(items(layout)[:1])
    committer.fail({1: "broke"})
    committer.cancel([2])
    committer.close()


def remove(path: Path, columns: Columns) -> None:
    shutil.rmtree(path)


def move(path: Path, columns: Columns) -> None:
    path.rename(path.with_name("elsewhere"))


def replace(path: Path, columns: Columns) -> None:
    remove(path, columns)
    make(path, columns)


def replace_content(path: Path, columns: Columns) -> None:
    """Replace the contents as `rsync --delete` does: the folder stays the same."""
    make(path.with_name("other.zarr"), columns)
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in path.with_name("other.zarr").iterdir():
        entry.rename(path / entry.name)


FATES = {
    "removed": (remove, "was removed"),
    "moved": (move, "was removed"),
    "replaced": (replace, "another archive took the place"),
    "replaced within": (replace_content, "another archive took the place"),
}


class Fate:
    """Acts on an archive before a durable write of a given number, counted from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
        self._real, self._left, self._act = storage.write_durably, step, act
        monkeypatch.setattr(storage, "write_durably", self._write)

    def _write(self, path: Path, parts: Any) -> None:
        self._left -= 1
        if self._left == -1:
            self._act()  # its own writes are no longer counted
        self._real(path, parts)


@pytest.mark.parametrize("fate", FATES)
def test_a_job_fails_safely_whenever_its_archive_changes(
    fate: str, tmp_path: Path, columns: Columns, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the archive changes before any write of a job, the job reports it and leaves the path unchanged."""
    act, words = FATES[fate]
    for step in range(99):
        path, after = tmp_path / str(step) / "a.zarr", dict[str, bytes]()
        pinned, layout = make(path, columns)

        def happen(path: Path = path, after: dict[str, bytes] = after) -> None:
            act(path, columns)
            after.update(tree(path))

        with monkeypatch.context() as patch:
            Fate(patch, step, happen)
            message = failure_of(lambda: write_all(ArchiveCommitter(pinned), layout))  # noqa: B023
        if not message:
            break
        assert words in message, step
        assert path.exists() == fate.startswith("replaced")
        if fate != "replaced within":  # the folder is the same, so writes in flight still arrive
            assert tree(path) == after
    # The job's last write is zarr.json: in a folder with replaced contents, it restores the job's identity.
    assert not after or fate == "replaced within"
    assert 8 <= step < 40, "the change precedes each write once"


def failure_of(work: Callable[[], None]) -> str:
    """Return the message of the StorageError, or ""."""
    try:
        work()
    except StorageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fate", FATES)
def test_a_job_that_waited_finds_its_archive_gone(fate: str, tmp_path: Path, columns: Columns, tree: Tree) -> None:
    """A job whose archive went before its start ends at once with the reason, and touches no other folder."""
    act, words = FATES[fate]
    pinned, _ = make(tmp_path / "a.zarr", columns)
    act(tmp_path / "a.zarr", columns)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match=words):
        ArchiveCommitter(pinned)
    with pytest.raises(StorageError, match=words):
        PinnedArchive(tmp_path / "a.zarr", pinned.run)
    assert tree(tmp_path) == before


def test_removed_folders_are_not_recreated(tmp_path: Path, columns: Columns) -> None:
    """During an unfinished `rm -r`, the job fails and removed folders stay removed."""
    pinned, layout = make(tmp_path / "a.zarr", columns)
    committer = ArchiveCommitter(pinned)
    shutil.rmtree(tmp_path / "a.zarr" / "token" / "position" / "c")
    with pytest.raises(StorageError, match=r"a\.zarr/token/position/c/0 failed: No such file or directory"):
        committer.complete(items(layout))
    assert not (tmp_path / "a.zarr" / "token" / "position" / "c").exists()
    assert not open_archive(tmp_path / "a.zarr").instructions.state.any()


def test_every_archive_has_a_run_id_of_its_own(tmp_path: Path, columns: Columns) -> None:
    """The run id has 32 hexadecimal digits and survives closing; archives of early releases have none."""
    runs = set()
    for name in "ab":
        pinned, layout = make(tmp_path / f"{name}.zarr", columns)
        write_all(ArchiveCommitter(pinned), layout)
        attributes = zarr.open_group(tmp_path / f"{name}.zarr", mode="r").attrs["sparcom"]
        assert (attributes["state"], attributes["run"]) == ("complete", pinned.run)  # type: ignore[index,call-overload]
        assert len(bytes.fromhex(pinned.run or "")) == 16
        runs.add(pinned.run)
    assert len(runs) == 2
    assert open_archive(GOLDEN).attributes.run is None
    assert PinnedArchive(GOLDEN).run is None


@pytest.fixture(params=["plain", "links refused"])
def opening(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    return lambda path: open_archive(path, follow_links=request.param == "plain")


def test_a_reader_does_not_mix_two_archives(tmp_path: Path, opening: Callable[[Path], Any]) -> None:
    """After another archive of the same shape takes the place, no row of it is returned."""
    path = tmp_path / "a.zarr"
    write_random_archive(path, seed=1)
    archive = opening(path)
    table = archive.instructions
    assert archive.read_active(0, 8).any()
    shutil.rmtree(path)
    write_random_archive(path, seed=1)
    assert table.state.tolist() == open_archive(path).instructions.state.tolist()
    for read in (lambda: archive.read_active(0, 8), lambda: archive.strings("text"), archive.require_same):
        with pytest.raises(DamagedArchiveError, match="another archive took the place"):
            read()
    shutil.rmtree(path)
    for read in (lambda: archive.read_active(0, 8), lambda: archive.strings("text"), archive.require_same):
        with pytest.raises(ArchiveNotFoundError, match="was removed"):
            read()


def test_a_reader_of_an_archive_without_a_run_id_does_not_mix_either(tmp_path: Path) -> None:
    """Archives without a run id are distinguished by their other attributes."""
    shutil.copytree(GOLDEN, tmp_path / "a.zarr")
    archive = open_archive(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr")
    shutil.copytree(GOLDEN, tmp_path / "a.zarr")
    assert archive.read_active(0, 8).any(), "a copy has the same identity"
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    metadata["attributes"]["sparcom"]["model"]["id"] = "tuned"
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(DamagedArchiveError, match="another archive took the place"):
        archive.read_active(0, 8)


def test_a_reader_goes_on_when_the_job_ends(tmp_path: Path, columns: Columns) -> None:
    """Closing an archive rewrites its attributes; its identity stays the same."""
    pinned, layout = make(tmp_path / "a.zarr", columns)
    archive = open_archive(tmp_path / "a.zarr")
    write_all(ArchiveCommitter(pinned), layout)
    assert archive.instructions.state.tolist() == [1, 2, 3]


def test_a_link_is_a_missing_file_where_links_are_refused(tmp_path: Path) -> None:
    """Nothing behind a link is read, for a column, chunk, folder or root; by default links are followed."""
    secret = tmp_path / "secret.zarr"
    write_random_archive(secret)
    for inner in ("zarr.json", "neuron", "instruction/text", "instruction/state/c", "instruction/state/c/0"):
        path = tmp_path / f"{inner.replace('/', '-')}.zarr"
        write_random_archive(path)
        target = path / inner
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        target.symlink_to(secret / inner)
        with pytest.raises(ArchiveError, match=r"is missing|is not|lacks"):
            read_all(open_archive(path, follow_links=False))
        if inner != "zarr.json":
            read_all(open_archive(path))
    (tmp_path / "root.zarr").symlink_to(secret)
    with pytest.raises(NotAnArchiveError, match="is not"):
        open_archive(tmp_path / "root.zarr", follow_links=False)


def read_all(archive: Any) -> None:
    assert archive.instructions.state.any()
    assert archive.strings("text")
    assert archive.read_active(0, 8).any()


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_only_the_owner_may_read_an_archive(tmp_path: Path, columns: Columns, open_umask: None) -> None:
    """Under any umask, files have mode 0600 and folders 0700, from creation to the end of a job, parents included."""
    path = tmp_path / "data" / "archives" / "a.zarr"
    pinned, layout = make(path, columns)
    write_all(ArchiveCommitter(pinned), layout)
    found = {stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "data").rglob("*") if item.is_file()}
    folders = {stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "data").rglob("*") if item.is_dir()}
    assert (found, folders) == ({0o600}, {0o700})
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["archive", "folder", "empty folder", "file", "dangling link"])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_name_taken_during_creation_is_kept(
    kind: str, kernel: bool, tmp_path: Path, columns: Columns, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the name is taken while the archive is built, creation raises ArchiveExistsError, never StorageError.

    Whatever took the name stays, even an empty folder, with and without renameat2.
    """
    path, before, build = tmp_path / "a.zarr", list[Any](), create._build

    def identity() -> tuple[int, ...]:
        found = path.lstat()  # without the access time, which reading may change
        return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns

    def take() -> None:
        if kind == "archive":
            make(path, columns)
        elif kind == "file":
            path.write_bytes(b"precious")
        elif kind == "dangling link":
            path.symlink_to("nowhere")
        else:
            path.mkdir()
            if kind == "folder":
                (path / "mine").write_bytes(b"precious")

    def build_and_lose(*arguments: Any) -> None:
        build(*arguments)
        monkeypatch.setattr(create, "_build", build)
        take()
        before.append((tree(path), identity()))

    monkeypatch.setattr(create, "_build", build_and_lose)
    if not kernel:
        monkeypatch.setattr(storage, "_rename_no_replace", lambda *_: False)
    with pytest.raises(ArchiveExistsError, match=r"a\.zarr exists"):
        make(path, columns)
    assert [(tree(path), identity())] == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.zarr"], "the refused archive leaves nothing"
