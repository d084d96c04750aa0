"""docs/python.md, its notebook and the public names: the page runs and prints the output that it shows.

`python tests/analysis/whole/test_python_page.py` writes the notebook again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import xarray as xr

import sparcom_analysis as sp

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "examples" / "analysis.ipynb"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
ARRAY = re.compile(r"\b(?:float64|int64|uint64|uint32|intp|bool)\b")


def run_cells(cells: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Run the code cells in one namespace; yield code, printed output without trailing spaces, and shown output."""
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            code, shown = "".join(cell["source"]), "".join(line for one in cell["outputs"] for line in one["text"])
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, f"analysis.ipynb, cell {number}", "exec"), names)  # noqa: S102
            yield code, "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()), shown


def notebook(page: str) -> dict[str, Any]:
    """Return the page as a notebook: code blocks with their output, and markdown cells for the text between."""
    cells: list[dict[str, Any]] = []
    end = 0
    for found in [*BLOCK.finditer(page), None]:
        text = page[end : found.start() if found else None].strip()
        text = text.replace("](../examples/analysis.ipynb)", "](analysis.ipynb)")
        text = re.sub(r"\]\(([\w-]+\.md)", r"](../docs/\1", text)
        if text:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": lines(text)})
        if found:
            output = {"name": "stdout", "output_type": "stream", "text": lines(found[2] or "")}
            code = {"cell_type": "code", "execution_count": None, "metadata": {}, "source": lines(found[1].rstrip())}
            cells.append(code | {"outputs": [output] if found[2] else []})
            end = found.end()
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def lines(text: str) -> list[str]:
    """Return a text as notebooks hold it."""
    return text.splitlines(keepends=True)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip the rendering of figures; pyplot needs no screen and keeps no figure."""
    monkeypatch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg/>")
    before = mpl.get_backend()
    mpl.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    mpl.use(before)


@pytest.mark.usefixtures("undrawn")
def test_the_notebook_prints_the_shown_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in order, on archives that the first one writes, and print the output below them."""
    monkeypatch.chdir(tmp_path)
    blocks = 0
    for code, printed, shown in run_cells(json.loads(NOTEBOOK.read_text())["cells"]):
        assert printed == shown, code
        blocks += 1
    assert blocks > 10
    assert (tmp_path / "mine.pdf").stat().st_size > 5000


def test_the_page_answers_ten_questions() -> None:
    """Each heading with a number is a question, followed by code."""
    questions = re.findall(r"^## (\d+)\. .*\?$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number in questions] == list(range(1, 11))


def test_the_notebook_is_the_page() -> None:
    """The notebook has the code, the text and the output of the page, so running the notebook runs the page."""
    assert json.loads(NOTEBOOK.read_text()) == notebook(PAGE.read_text())


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_is_described(name: str) -> None:
    """A class documents its fields; a function gives shape and dtype, itself or through the public class that it
    returns.
    """
    item = getattr(sp, name)
    text = inspect.getdoc(item) or ""
    assert len(text.split()) > 4
    if dataclasses.is_dataclass(item):
        text = "\n".join(inspect.getdoc(kind) or "" for kind in item.__mro__)
        missing = [field.name for field in dataclasses.fields(item) if not re.search(described(field), text)]
        assert not missing, f"{name} does not name {missing}"
    elif inspect.isfunction(item):
        assert "Returns:" in text or ARRAY.search(text) or names_public_class(item), text


def described(field: dataclasses.Field[object]) -> str:
    """Return the pattern that describes a field: `name: …` or `name, other: …` for arrays and lists, else the name."""
    several = "NDArray" in str(field.type) or "Sequence" in str(field.type)
    return rf"\b{field.name}(?:, \w+)*:" if several else rf"\b{field.name}\b"


def names_public_class(function: object) -> bool:
    """Return whether a function's result is a path, or is or contains a class of `__all__` or of xarray."""
    returned = typing.get_type_hints(function)["return"]
    known = {*sp.__all__, xr.Dataset.__name__, xr.DataTree.__name__, Path.__name__}
    return any(kind.__name__ in known for kind in (returned, *typing.get_args(returned)) if inspect.isclass(kind))


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(PAGE.read_text()), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
