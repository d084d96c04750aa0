"""The output folder holds the files of one analysis, or no metrics.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcom_analysis.report import folder
from sparcom_analysis.report.folder import NAMES, check_output, write_folder
from sparcom_data.errors import InvalidInputError, StorageError

FIRST = {"tables/a.csv": b"a1", "tables/b.csv": b"b1", "report.html": b"r1", "metrics.json": b"m1"}
SECOND = {"tables/a.csv": b"a2", "figures/c.svg": b"c2", "report.html": b"r2", "metrics.json": b"m2"}


def held(where: Path) -> dict[str, bytes]:
    """Return the files in a folder, except the list of names."""
    files = {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()}
    files.pop(NAMES, None)
    return files


def test_stale_files_of_an_earlier_analysis_are_removed(tmp_path: Path) -> None:
    """A second analysis leaves its own files and those that no analysis wrote."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.csv").write_bytes(b"mine")
    write_folder(tmp_path, FIRST)
    assert held(tmp_path) == FIRST | {"tables/mine.csv": b"mine"}
    write_folder(tmp_path, SECOND)
    assert held(tmp_path) == SECOND | {"tables/mine.csv": b"mine"}


@pytest.mark.parametrize("writes", range(6))
def test_an_interrupted_analysis_looks_unfinished(writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a second analysis stops at any write, no metrics.json is left; the next analysis cleans up."""
    write_folder(tmp_path, FIRST)
    write, done = folder.write_file, []

    def stops(path: Path, parts: list[bytes]) -> None:
        if len(done) == writes:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f"{path.name}.0123.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(path)
        write(path, parts)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_file", stops)
        if writes < len(SECOND) + 1:
            with pytest.raises(KeyboardInterrupt):
                write_folder(tmp_path, SECOND)
            assert not {"metrics.json"} & held(tmp_path).keys()
        else:
            with pytest.raises(KeyboardInterrupt):  # only the list of names is out of date
                write_folder(tmp_path, SECOND)
            assert held(tmp_path).items() >= SECOND.items()
    third = {"tables/b.csv": b"b3", "metrics.json": b"m3"}
    write_folder(tmp_path, third)
    assert held(tmp_path) == third


def test_reports_of_subfolders_are_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If several runs stop at the first write, no subfolder has a metrics.json or report.html."""
    write_folder(tmp_path, {f"{run}/{name}": b"1" for run in "ab" for name in ("metrics.json", "report.html", "c.csv")})
    monkeypatch.setattr(folder, "write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, {"report.html": b"2"})
    assert set(held(tmp_path)) == {"a/c.csv", "b/c.csv"}


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    """A manipulated list of names removes nothing outside the folder; an invalid list is ignored."""
    inner, outside = tmp_path / "results", tmp_path / "outside"
    inner.mkdir()
    outside.write_bytes(b"stays")
    for text in (f'["../outside", "{outside}", 3, ""]', "{}", "7", "not JSON"):
        (inner / NAMES).write_text(text)
        write_folder(inner, FIRST)
        assert held(inner) == FIRST
    assert outside.read_bytes() == b"stays"


def test_results_in_an_archive_are_refused(tmp_path: Path) -> None:
    """Results in or below a Zarr group, or at the path of a file, are refused; nothing is written."""
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    for place in (tmp_path / "a.zarr", tmp_path / "a.zarr" / "report"):
        with pytest.raises(InvalidInputError, match=r"the output must be outside any archive.*Choose another --output"):
            check_output(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zarr", "zarr.json"]
    with pytest.raises(StorageError, match="is a file"):
        check_output(tmp_path / "a.zarr" / "zarr.json")
