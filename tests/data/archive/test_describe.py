"""Repr of archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparcom_data.archive import Archive, open_archive
from sparcom_data.describe import described
from sparcom_data.testing import write_random_archive, write_random_moe_archive


def test_the_repr_of_a_dense_archive(sample: Any) -> None:
    """The repr shows name, model, complete instructions, layers, neurons and the stored values."""
    facts = "random, 9/10 instructions complete, 3 layers × 20 neurons, masks of prompt tokens"
    assert repr(open_archive(sample.path)) == f"<Archive {sample.path.name}: {facts}>"


def test_an_moe_archive_names_its_populations(tmp_path: Path) -> None:
    """Dense layers, routed experts and shared experts are listed separately; counts are named as counts."""
    write_random_moe_archive(tmp_path / "moe.zarr", granularity="count")
    text = repr(open_archive(tmp_path / "moe.zarr"))
    assert "1 layer × " in text
    assert "2 MoE layers × 6 experts × 12 neurons (top 2), 2 MoE layers × 20 neurons of shared experts" in text
    assert text.endswith("top-k experts, counts of prompt tokens>")


def test_a_notebook_gets_escaped_html(tmp_path: Path) -> None:
    """HTML characters in a path are escaped."""
    write_random_archive(tmp_path / "a<b>.zarr")
    html = open_archive(tmp_path / "a<b>.zarr")._repr_html_()
    assert "a&lt;b&gt;.zarr" in html
    assert "<li>10/10 instructions complete</li>" in html


def test_a_damaged_archive_has_a_repr(sample: Any) -> None:
    """The repr of a damaged archive reports an unreadable table and never raises; reading rows does."""
    chunks = [file for file in (sample.path / "instruction/state").rglob("*") if file.name != "zarr.json"]
    next(file for file in chunks if file.is_file()).unlink()
    assert "random, instructions unreadable, 3 layers" in repr(open_archive(sample.path))


def test_the_repr_reads_only_the_table(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repr reads no mask, token id or top-k expert."""
    names: list[str] = []
    read = Archive.read_rows

    def watch(archive: Archive, name: str, *arguments: Any) -> Any:
        names.append(name)
        return read(archive, name, *arguments)

    monkeypatch.setattr(Archive, "read_rows", watch)
    repr(open_archive(sample.path))
    assert names
    assert all(name.startswith("instruction/") for name in names)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("http://host:8000/v1/archives/base/zarr", "base"),
        ("http://host:8000/v1/archives/base/zarr/", "base"),
        ("/data/runs/base.zarr", "base.zarr"),
        (".", Path.cwd().name),
    ],
)
def test_the_name_is_that_of_the_folder_or_of_the_archive_on_its_server(sample: Any, path: str, name: str) -> None:
    """`/zarr` at the end of an address is not part of the name."""
    archive = open_archive(sample.path)
    text = described(path, archive.attributes, lambda: archive.instructions.state)
    assert text.startswith(f"<Archive {name}: random")
