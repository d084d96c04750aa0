"""`sparcom verify`: printed checks and findings, and the exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from sparcom_cli.main import main
from sparcom_data.testing import fill_array, write_random_archive


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sparcom", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_random_archive(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def test_a_sound_archive_is_0(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each check prints one line about the data that it read."""
    assert run(monkeypatch, archive, "--no-tokenizer") == 0
    said = capsys.readouterr().out
    assert said.endswith("nothing wrong was found\n")
    assert said.count("ok   ") == len(said.splitlines()) - 1 == 4
    assert "10 complete" in said


def test_several_archives_are_all_checked(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sound archive after a damaged one is still checked; one wrong archive gives status 1. --model is refused, since
    it would be unclear which archive it belongs to."""
    write_random_archive(tmp_path / "b.zarr", seed=1)
    assert run(monkeypatch, archive, tmp_path / "b.zarr", "--no-tokenizer") == 0
    assert capsys.readouterr().out.count("nothing wrong was found") == 2
    damage_chunk(archive)
    assert run(monkeypatch, archive, tmp_path / "b.zarr", "--no-tokenizer") == 1
    said = capsys.readouterr().out
    assert f"{archive}: 1 findings" in said
    assert said.endswith(f"{tmp_path / 'b.zarr'}: nothing wrong was found\n")
    assert run(monkeypatch, archive, tmp_path / "b.zarr", "--model", "x") == 2
    assert "verify each archive separately" in capsys.readouterr().err


def test_counts_are_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive of counts has its own checks; a damaged chunk is reported like any other."""
    write_random_archive(tmp_path / "c.zarr", granularity="count")
    assert run(monkeypatch, tmp_path / "c.zarr", "--no-tokenizer") == 0
    assert "ok     counts" in capsys.readouterr().out
    (tmp_path / "c.zarr/neuron/count/c.1.0.0").unlink()
    assert run(monkeypatch, tmp_path / "c.zarr", "--no-tokenizer") == 1
    assert "chunk c.1.0.0 of array neuron/count" in capsys.readouterr().out


def damage_chunk(archive: Path) -> None:
    chunk = archive / "neuron" / "active" / "c.1.0.0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)


def lose_chunk(archive: Path) -> None:
    (archive / "neuron" / "active" / "c.0.0.0").unlink()


def unwritten_row(archive: Path) -> None:
    zarr.open_array(archive / "token" / "id", mode="r+")[4] = -1


def moved_position(archive: Path) -> None:
    zarr.open_array(archive / "token" / "position", mode="r+")[4] = 99


def spare_bit(archive: Path) -> None:
    array = zarr.open_array(archive / "neuron" / "active", mode="r+")
    rows = np.asarray(array[:8])
    rows[0, 0, -1] |= 0x80
    array[:8] = rows


def lost_column(archive: Path) -> None:
    (archive / "instruction" / "state" / "c" / "0").unlink()


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (damage_chunk, "chunk c.1.0.0 of array neuron/active"),
        (lose_chunk, "chunk c.0.0.0 of array neuron/active"),
        (unwritten_row, "1 of its"),
        (moved_position, "positions must be consecutive from 0"),
        (spare_bit, "spare bits past neuron 19 must be 0"),
        (lost_column, "of array instruction/state"),
    ],
)
def test_a_damaged_archive_is_1_and_reported(
    damage: object, finding: str, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finding is printed below its check and counted."""
    damage(archive)  # type: ignore[operator]
    assert run(monkeypatch, archive, "--no-tokenizer") == 1
    said = capsys.readouterr().out
    assert finding in said
    assert "WRONG  " in said
    assert said.rstrip().endswith("findings")


@pytest.mark.parametrize(
    ("states", "closed", "status", "said"),
    [
        ([1] * 10, True, 0, "nothing wrong was found"),
        ([1] * 4 + [3] * 6, True, 0, "nothing wrong was found; 4 of 10 instructions are complete, 6 cancelled; only"),
        ([1] * 8 + [2, 3], True, 0, "8 of 10 instructions are complete, 1 failed, 1 cancelled; only complete"),
        ([0] * 10, False, 3, "not verified; 10 of 10 instructions are pending: nothing was checked"),
        ([1] * 4 + [0] * 6, False, 3, "not verified; 4 of 10 instructions are complete, 6 pending; only complete"),
        ([1] * 10, False, 3, "not verified; 10 of 10 instructions are complete, and the archive is still open; only"),
        ([3] * 10, True, 3, "not verified; 10 of 10 instructions are cancelled: nothing was checked"),
        ([2] * 3 + [3] * 7, True, 3, "not verified; 3 of 10 instructions are failed, 7 cancelled: nothing was checked"),
    ],
)
def test_incomplete_instructions_are_reported(
    states: list[int],
    closed: bool,
    status: int,
    said: str,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cancelled and failed instructions give status 0 if others are complete. Pending, open or none complete is 3."""
    fill_array(archive, "instruction/state", np.array(states, dtype=np.uint8))
    errors = ["failed on purpose" if state == 2 else "" for state in states]
    fill_array(archive, "instruction/error", np.array(errors, dtype=np.dtypes.StringDType()))
    if not closed:
        file = archive / "zarr.json"
        file.write_text(file.read_text().replace('"state": "complete"', '"state": "open"'))
    reference = [] if 1 in states else ["--reference", "transformers", "--model", "not there"]  # nothing to compare
    assert run(monkeypatch, archive, "--no-tokenizer", *reference) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{archive}: ")
    assert said in last


def test_a_finding_outweighs_an_unfinished_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several archives, one with a finding gives status 1; otherwise an unfinished one gives 3."""
    write_random_archive(tmp_path / "b.zarr")
    zarr.open_array(archive / "instruction/state", mode="r+")[:] = 3
    assert run(monkeypatch, archive, tmp_path / "b.zarr", "--no-tokenizer") == 3
    damage_chunk(tmp_path / "b.zarr")
    assert run(monkeypatch, archive, tmp_path / "b.zarr", "--no-tokenizer") == 1


def test_many_findings_are_truncated(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thoroughly damaged archive does not fill the terminal; further findings are only counted."""
    write_random_archive(archive.parent / "b.zarr", per_category=20)
    zarr.open_array(archive.parent / "b.zarr" / "token" / "position", mode="r+")[:] = 5
    assert run(monkeypatch, archive.parent / "b.zarr", "--no-tokenizer") == 1
    said = capsys.readouterr().out
    assert "and 20 more" in said
    assert "40 findings" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.zarr", "error: there is no archive at"),
        ("file", "a SPARCOM archive is a folder"),
        ("folder", "a SPARCOM archive is a Zarr v3 group"),
    ],
)
def test_a_path_without_an_archive_is_reported(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing path, a file and another folder each give one line and status 1."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert run(monkeypatch, tmp_path / name, "--no-tokenizer") == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_newer_format_is_reported(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For an archive of a newer format, the error names the supported version and the remedy."""
    file = archive / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["sparcom"]["format_version"] = 2
    file.write_text(json.dumps(metadata))
    assert run(monkeypatch, archive, "--no-tokenizer") == 1
    assert "has format 2. Upgrade sparcom" in capsys.readouterr().err


@pytest.mark.torch
def test_another_models_tokenizer_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong tokenizer would give false findings, so it is refused, with both remedies."""
    model = Path("models/smollm2-135m-instruct")
    if not (model / "tokenizer.json").exists():
        pytest.skip("the demo model is not on disk: `make test` fetches it")
    assert run(monkeypatch, archive, "--model", model) == 1
    said = capsys.readouterr().err
    assert "the tokenizer must be the archive's" in said
    assert "--no-tokenizer" in said


def test_a_sample_of_nothing_is_wrong_usage(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample must hold at least one instruction."""
    assert run(monkeypatch, archive, "--reference", "transformers", "--sample", "0") == 2
