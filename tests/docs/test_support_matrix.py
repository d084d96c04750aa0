"""The tables of docs/support-matrix.md match the code and the tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparcom_models import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "support-matrix.md").read_text(encoding="utf-8")
RUN = ROOT / "tests" / "extractor" / "run"
# Files of vLLM, arrays of an archive, and the folder of news, which is empty after a release.
ELSEWHERE = ("vllm/", "model_executor/", "v1/", "triton_utils/", "config/", "token/", "changes/")
PAGES = [
    "architecture",
    "engine-notes",
    "adding-a-model-family",
    "supporting-a-vllm-version",
    "support-matrix",
    "selftest",
]


def rows() -> dict[str, list[str]]:
    """Return the cells of the table of families by the name of the tiny model."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    return {
        line[1].strip("`"): line
        for line in cells
        if len(line) == 9 and line[1].startswith("`") and line[2] != "captured"
    }


def strings(path: Path) -> set[str]:
    """Return all strings of a source, without importing it: imports of tests may need an engine."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def named(column: int, value: str) -> set[str]:
    """Return the families with this value in a column of the table."""
    return {name for name, line in rows().items() if line[column] == value}


def test_the_table_has_every_architecture() -> None:
    """Every tiny model has one row, and no other family has one."""
    assert set(rows()) == set(ARCHITECTURES)


def test_engine_tests_are_those_that_exist() -> None:
    """A family has "yes" if and only if an engine test names it."""
    files = ["test_capture_engine.py", "test_family_engines.py", "test_moe_engine.py"]
    found = set().union(*(strings(RUN / name) for name in files)) & set(ARCHITECTURES)
    assert named(6, "yes") == found | {"llama"}, "LLaMA's model is a fixture"


def test_numpy_tests_are_those_that_exist() -> None:
    """A family has "yes" if its routing rule is implemented in NumPy."""
    tree = ast.parse((ROOT / "tests/extractor/verification/test_reference_routers.py").read_text(encoding="utf-8"))
    keys = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Call) and ast.unparse(value.func) == "Family"
    }
    assert keys
    assert named(7, "yes") == keys


def test_gpu_tests_are_those_that_exist() -> None:
    """A family has "not run" if tests/gpu has a variant of it, "none" otherwise."""
    variants = strings(ROOT / "tests" / "gpu" / "conftest.py") & set(ARCHITECTURES)
    assert named(8, "not run") == variants
    assert named(8, "none") == set(ARCHITECTURES) - variants


def test_known_differences_are_in_both_tables() -> None:
    """Each family with a known difference has its row in the second table."""
    section = PAGE.split("## Known differences of vLLM")[1].split("\n## ")[0]
    for name in named(5, "known difference"):
        assert re.search(rf"^\|[^|]*\b{re.escape(rows()[name][0])}\b", section, re.MULTILINE), name


def paths(text: str) -> Iterator[str]:
    """Yield paths in backticks: files of Python, and folders that end with a slash."""
    yield from re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.py)?)`", text)


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    """Every path in backticks leads to a file or folder, from the root or from within a package."""
    bases = [ROOT, *(path.parent for path in ROOT.glob("*/sparcom_*")), *ROOT.glob("*/sparcom_*")]
    found = set(paths((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    assert found
    missing = {path for path in found if not any((base / path).exists() for base in bases)}
    assert {path for path in missing if not path.startswith(ELSEWHERE)} == set()


@pytest.mark.parametrize("text", ["`capture/ops/nothing.py`", "see `a/b/`"])
def test_paths_are_found(text: str) -> None:
    """The search finds files and folders."""
    assert list(paths(text))
