"""docs/python.md, the notebook made of it, and the public names: the page runs and prints what it shows.

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
    """Each cell of code, what it printed (no spaces at ends of lines) and what is shown, in one namespace."""
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            code, shown = "".join(cell["source"]), "".join(line for one in cell["outputs"] for line in one["text"])
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, f"analysis.ipynb, cell {number}", "exec"), names)  # noqa: S102
            yield code, "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()), shown


def notebook(page: str) -> dict[str, Any]:
    """Return the page as a notebook: each block a cell with its output, the text between them markdown cells."""
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
    """Figures of the report are not turned into bytes; pyplot needs no screen and keeps no figure."""
    monkeypatch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg/>")
    before = mpl.get_backend()
    mpl.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    mpl.use(before)


@pytest.mark.usefixtures("undrawn")
def test_the_notebook_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs after those before it, on archives that the first one writes, and prints what stands below."""
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
def test_every_public_name_says_what_it_is(name: str) -> None:
    """A class names its fields; a function says shape and dtype, itself or by the public class that it returns."""
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
    """How a docstring names a field: arrays and lists as `name: …` or `name, other: …`, others anywhere."""
    several = "NDArray" in str(field.type) or "Sequence" in str(field.type)
    return rf"\b{field.name}(?:, \w+)*:" if several else rf"\b{field.name}\b"


def names_public_class(function: object) -> bool:
    """Whether what a function returns is a path, or is or holds a class of `__all__` or of xarray."""
    returned = typing.get_type_hints(function)["return"]
    known = {*sp.__all__, xr.Dataset.__name__, xr.DataTree.__name__, Path.__name__}
    return any(kind.__name__ in known for kind in (returned, *typing.get_args(returned)) if inspect.isclass(kind))


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(PAGE.read_text()), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
