"""docs/python.md and the public names: the page runs and prints what it shows, and every name says what it is."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
from pydantic import BaseModel

import sparcom_analysis as sa

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "python.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
HOLDERS = {"Analysis", "Results"}  # they hold what these classes say of themselves, under their names
ARRAY = re.compile(r"\b(?:float64|int64|uint64|uint32|intp|bool)\b")


def run_blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Each block of code, what it printed (no spaces at ends of lines) and what is shown, in one namespace."""
    names: dict[str, object] = {}
    for number, found in enumerate(BLOCK.finditer(text)):
        code, shown = found[1], found[2] or ""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, f"docs/python.md, block {number}", "exec"), names)  # noqa: S102
        yield code, "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()), shown


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures of the report are not turned into bytes; pyplot needs no screen and keeps no figure."""
    for name in ("to_png", "to_svg"):
        monkeypatch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"")
    before = mpl.get_backend()
    mpl.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    mpl.use(before)


@pytest.mark.usefixtures("undrawn")
def test_the_page_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs after those before it, on archives that the first one writes, and prints what stands below."""
    monkeypatch.chdir(tmp_path)
    blocks = 0
    for code, printed, shown in run_blocks(PAGE.read_text()):
        assert printed == shown, code
        blocks += 1
    assert blocks > 10
    assert (tmp_path / "layers.png").stat().st_size > 5000


@pytest.mark.parametrize("name", sa.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """A class names its fields; a function says shape and dtype, itself or by the public class that it returns."""
    item = getattr(sa, name)
    text = inspect.getdoc(item) or ""
    if inspect.isclass(item) and issubclass(item, BaseModel):
        assert all(field.description for field in item.model_fields.values())
        return
    assert len(text.split()) > 4
    if dataclasses.is_dataclass(item) and name not in HOLDERS:
        missing = [field.name for field in dataclasses.fields(item) if not re.search(described(field), text)]
        assert not missing, f"{name} does not name {missing}"
    elif not inspect.isclass(item):
        assert "Returns:" in text or ARRAY.search(text) or names_public_class(item), text


def described(field: dataclasses.Field[object]) -> str:
    """How a docstring names a field: arrays and lists as `name: …` or `name, other: …`, others anywhere."""
    several = "NDArray" in str(field.type) or "Sequence" in str(field.type)
    return rf"\b{field.name}(?:, \w+)*:" if several else rf"\b{field.name}\b"


def names_public_class(function: object) -> bool:
    """Whether what a function returns is, or holds, a class of `__all__`, whose docstring has the shapes."""
    returned = typing.get_type_hints(function)["return"]
    return any(kind.__name__ in sa.__all__ for kind in (returned, *typing.get_args(returned)) if inspect.isclass(kind))
