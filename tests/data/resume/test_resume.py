"""An unfinished archive is reopened for the same extraction only, and by one process at a time."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data import resume
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import (
    ArchiveExistsError,
    ArchiveNotFoundError,
    DiskFullError,
    InvalidInputError,
    NotAnArchiveError,
    StorageError,
)
from sparcom_data.resume import reopen_archive
from sparcom_data.schema import State
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, DatasetInfo
from sparcom_data.storage import partial_name, storage_error
from sparcom_data.storage.identity import PinnedFolder
from sparcom_data.testing import random_attributes

LENGTHS = [5, 3, 7, 4]
ROOM = 4  # reserved response rows
LAYOUT = plan_layout(LENGTHS, "all", ROOM)
Columns = Callable[..., InstructionColumns]


def attributes(**model: Any) -> ArchiveAttributes:
    made = random_attributes(1, 16, positions="all", max_tokens=ROOM)
    dataset = DatasetInfo(name="set", sha256="a" * 64)
    return made.model_copy(update={"dataset": dataset, "model": made.model.model_copy(update=model)})


def with_engine(**facts: Any) -> ArchiveAttributes:
    made = attributes()
    return made.model_copy(update={"engine": made.engine.model_copy(update=facts)})


def item(index: int, rows: int, response: str = "") -> CompletedInstruction:
    ids, start = np.arange(rows, dtype=np.int32), int(LAYOUT.token_start[index])
    return CompletedInstruction(index, start, ids, ids, response, int(LAYOUT.capacity[index]))


@pytest.fixture
def opened(tmp_path: Path, columns: Columns) -> Path:
    """Return the path of an open archive: number 0 complete, 1 failed, 2 cancelled, 3 pending."""
    path = tmp_path / "a.zarr"
    committer = ArchiveCommitter(create_archive(path, attributes(), columns(4), LAYOUT))
    committer.complete([item(0, 6, "answer")])
    committer.fail({1: "broke"})
    committer.cancel([2])
    return path


def reopen(path: Path, columns: Columns, made: ArchiveAttributes | None = None, **given: Any) -> Any:
    return reopen_archive(path, made or attributes(), columns(4), LAYOUT, **given)


def test_complete_and_failed_instructions_stay(opened: Path, columns: Columns) -> None:
    """Pending and cancelled ones are pending afterwards. Nothing else of the archive changes."""
    run = open_archive(opened).attributes.run
    pinned, table = reopen(opened, columns, run=run)
    expected = [State.COMPLETE, State.FAILED, State.PENDING, State.PENDING]
    archive = open_archive(opened)
    assert table.state.tolist() == archive.instructions.state.tolist() == expected
    assert (archive.strings("error"), archive.strings("response")) == (["", "broke", "", ""], ["answer", "", "", ""])
    assert (pinned.run, archive.attributes.run, archive.attributes.state) == (run, run, "open")
    assert archive.read_tokens(0, 6)[0].tolist() == list(range(6))


def test_what_an_interrupted_commit_left_is_cleared(opened: Path, columns: Columns, put: Callable[..., None]) -> None:
    """A kill between two writes of a commit leaves a response, a reason, or ids past a shorter second response."""
    put(opened, "instruction/error", 3, "a reason without a state")
    put(opened, "instruction/response", 3, "a response without a state")
    put(opened, "instruction/token_length", 3, 8)
    start = int(LAYOUT.token_start[3])
    put(opened, "token/id", slice(start, start + 8), 99)
    pinned, _ = reopen(opened, columns)
    ArchiveCommitter(pinned).complete([item(3, 5)])
    archive = open_archive(opened)
    assert (archive.strings("error")[3], archive.strings("response")[3]) == ("", "")
    assert archive.read_tokens(start, start + 8)[0].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


DIFFERENCES: list[tuple[ArchiveAttributes, str]] = [
    (attributes(id="other"), "model.id must be that of the archive; it is 'other' and 'random' there"),
    (attributes(dtype="bfloat16"), "model.dtype must be that of the archive"),
    (attributes(revision="v2"), "model.revision"),
    (attributes(quantization="fp8"), "model.quantization"),
    (attributes(tokenizer_sha256="b"), "model.tokenizer_sha256"),
    (with_engine(vllm="1"), "engine.vllm must be that of the archive; it is '1' and '0' there. It can change bits"),
    (with_engine(torch="1"), "engine.torch"),
    (with_engine(device="cuda"), "engine.device"),
    (with_engine(tensor_parallel_size=2), "engine.tensor_parallel_size"),
    (with_engine(enforce_eager=False), "engine.enforce_eager"),
    (
        attributes().model_copy(update={"dataset": DatasetInfo(sha256="b" * 64)}),
        "SHA-256 aaaaaaaaaaaa…; these have bbb",
    ),
    (
        random_attributes(1, 16, positions="all", max_tokens=9),
        "capture.max_tokens must be that of the archive; it is 9",
    ),
]


@pytest.mark.parametrize(("made", "message"), DIFFERENCES, ids=[message[:20] for _, message in DIFFERENCES])
def test_another_extraction_is_refused(
    made: ArchiveAttributes, message: str, opened: Path, columns: Columns, tree: Any
) -> None:
    """A different model, option, instruction or, once instructions are complete, engine. Nothing is changed."""
    before = tree(opened)
    with pytest.raises(InvalidInputError, match=message):
        reopen(opened, columns, made)
    assert tree(opened) == before


def test_all_differences_are_reported_at_once(opened: Path, columns: Columns) -> None:
    """One attempt is enough to find them."""
    with pytest.raises(InvalidInputError) as found:
        reopen(opened, columns, attributes(id="other", dtype="float16"))
    assert len(found.value.problems) == 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["i0", "i2", "i1", "i3"], "number 1 is 'i2' and 'i1' in the archive"),
        (["i0"], "there are 1 and 4 in the archive"),
    ],
)
def test_other_instructions_are_refused(ids: list[str], message: str, opened: Path, columns: Columns) -> None:
    """Ids and their order must be equal."""
    layout = plan_layout(LENGTHS[: len(ids)], "all", ROOM)
    with pytest.raises(InvalidInputError, match=message):
        reopen_archive(opened, attributes(), columns(len(ids), id=ids), layout)


def test_another_layout_is_refused(opened: Path, columns: Columns) -> None:
    """A prompt of another length, or one that fits the context no more, would move or lose rows."""
    with pytest.raises(InvalidInputError, match="prompt_length of instruction 'i2' is 8 and 7 in the archive"):
        reopen_archive(opened, attributes(), columns(4), plan_layout([5, 3, 8, 4], "all", ROOM))
    shorter = plan_layout(LENGTHS, "all", ROOM, [True] * 3 + [False])
    with pytest.raises(InvalidInputError, match="instruction 'i3' must be able to run, as in the archive: too long"):
        reopen_archive(opened, attributes(), columns(4, error=["", "", "", "too long"]), shorter)


def test_another_engine_may_continue_if_nothing_is_complete(tmp_path: Path, columns: Columns) -> None:
    """The archive then names the new engine, and its chunks fit the new number of ranks."""
    path = tmp_path / "a.zarr"
    create_archive(path, attributes(), columns(4), LAYOUT).folder.unlock()
    (path / "neuron" / "active" / "c.0.0.0").write_bytes(b"rows of the first engine")
    reopen(path, columns, with_engine(vllm="1", tensor_parallel_size=2))
    archive = open_archive(path)
    assert (archive.attributes.engine.vllm, archive.array("neuron/active").chunks[-1]) == ("1", 1)
    assert not (path / "neuron" / "active" / "c.0.0.0").exists()
    with pytest.raises(InvalidInputError, match="3 ranks"):
        reopen_archive(path, with_engine(tensor_parallel_size=3), columns(4), LAYOUT)


def test_only_an_open_archive_of_the_run_is_reopened(opened: Path, columns: Columns, tmp_path: Path) -> None:
    """A missing, foreign or complete archive, or another run's, raises an error of its own."""
    with pytest.raises(ArchiveNotFoundError):
        reopen(tmp_path / "gone.zarr", columns)
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotAnArchiveError):
        reopen(tmp_path / "folder", columns)
    with pytest.raises(StorageError, match="another archive took the place"):
        reopen(opened, columns, run="0" * 32)
    ArchiveCommitter(opened).close()
    with pytest.raises(ArchiveExistsError, match="is complete"):
        reopen(opened, columns)


def test_leftovers_of_a_crash_are_removed(opened: Path, columns: Columns) -> None:
    """Partial files in the archive, and unlocked partial folders of its own name."""
    inside = partial_name(opened / "neuron" / "active" / "c.0.0.0")
    inside.write_bytes(b"half")
    free, locked, other = (partial_name(path) for path in (opened, opened, opened.with_name("a.zarr.b.zarr")))
    for folder in (free, locked, other):
        folder.mkdir()
    held = PinnedFolder(locked)
    held.lock()
    reopen(opened, columns)
    assert not inside.exists()
    assert (free.exists(), locked.exists(), other.exists()) == (False, True, True)


WRITER = """
import sys
from pathlib import Path
from sparcom_data.storage.identity import PinnedArchive
archive = PinnedArchive(Path(sys.argv[1]))
archive.folder.lock()
print("writes", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(opened: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that writes the archive, like a worker of a killed server."""
    command = [sys.executable, "-c", WRITER, str(opened)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        yield process
        process.kill()


def test_two_processes_never_write_one_archive(
    writer: subprocess.Popen[str], opened: Path, columns: Columns, monkeypatch: pytest.MonkeyPatch, tree: Any
) -> None:
    """While another process writes it, the archive is refused and stays unchanged. After its death it is reopened;
    a second attempt is then refused too."""
    before = tree(opened)
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.3)
    with pytest.raises(StorageError, match=r"another process still writes .*a\.zarr"):
        reopen(opened, columns)
    assert tree(opened) == before
    writer.kill()
    writer.wait(20)
    pinned, _ = reopen(opened, columns)
    with pytest.raises(StorageError, match="another process still writes"):
        reopen(opened, columns)
    pinned.folder.unlock()
    reopen(opened, columns)


def test_a_dying_process_is_waited_for(writer: subprocess.Popen[str], opened: Path, columns: Columns) -> None:
    """The engine of a killed server may live for a moment."""
    threading.Timer(0.5, writer.kill).start()
    assert reopen(opened, columns)[1].state.tolist()[0] == State.COMPLETE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_has_an_error_of_its_own(number: int) -> None:
    """A full disk or quota can be told from damaged storage."""
    full = isinstance(storage_error(Path("a"), OSError(number, "no")), DiskFullError)
    assert full == (number != errno.EIO)


def test_a_new_archive_on_a_full_disk_raises_it(tmp_path: Path, columns: Columns, writes: Any) -> None:
    """Also from the creation, which shows the archive's final name."""
    writes.restart(fail_at=3)
    with pytest.raises(DiskFullError, match=r"a\.zarr"):
        create_archive(tmp_path / "a.zarr", attributes(), columns(4), LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_resume_releases_the_archive(
    opened: Path, columns: Columns, writes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends the attempt. The next one finds the archive free, although the error is still being handled."""
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.2)
    writes.restart(fail_at=0)
    with pytest.raises(DiskFullError) as held:
        reopen(opened, columns)
    writes.restart()
    assert reopen(opened, columns)
    del held
