"""The layout of the repository: folders, their sizes, and imports without cycles."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "data",
    "extractor",
    "server",
    "analysis",
    "cli",
    "docker",
    "tests",
    "docs",
    "examples",
    "benchmarks",
    "scripts",
    "changes",
}
PACKAGES = sorted(path.parent for folder in ("data", "extractor", "server", "analysis", "cli")
                  for path in (ROOT / folder).glob("sparcom_*/__init__.py"))  # fmt: skip
MOST_FILES = 12
MOST_LINES = 400


@cache
def tracked() -> list[Path]:
    """Return the repository's files without golden archives. Without git, return the files of the working tree."""
    run = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = run.stdout.splitlines() if run.returncode == 0 else []
    found = [Path(name) for name in names] or [path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py")]
    return [path for path in found if "golden" not in path.parts and (ROOT / path).is_file()]


def test_the_top_level_has_the_planned_folders() -> None:
    """Every top-level folder is a planned one."""
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    assert folders == TOP_LEVEL


def test_no_folder_has_too_many_files() -> None:
    """A folder has at most twelve files, pages of documentation aside."""
    counts = Counter(path.parent for path in tracked() if path.suffix != ".md")
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}


def test_no_source_file_is_too_long() -> None:
    """A Python file has at most 400 lines."""
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in tracked() if path.suffix == ".py"}
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(source: str, modules: set[str]) -> Iterator[str]:
    """Return the modules that a source imports anywhere, including under TYPE_CHECKING and in functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from below
            if len(below) < len(node.names):
                yield node.module


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which module imports which, for sources by module name."""
    return {name: set(_imported(text, set(sources))) & set(sources) - {name} for name, text in sources.items()}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that import each other, or an empty list."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    while leaves := [name for name in left if not any(name in others for others in left.values())]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_imports_have_no_cycle() -> None:
    """No module imports itself through others."""
    files = [path for package in PACKAGES for path in package.rglob("*.py")]
    packages = {path: next(package for package in PACKAGES if package in path.parents) for path in files}
    assert not cycle(import_graph({_name(path, packages[path]): path.read_text() for path in files}))


def test_a_cycle_is_found() -> None:
    """A cycle in a function or under TYPE_CHECKING is found; a chain is not a cycle."""
    chain = {"p.a": "from p import b", "p.b": "def f():\n    import p.c", "p.c": "import os"}
    assert cycle(import_graph(chain)) == []
    closed = chain | {"p.c": "if TYPE_CHECKING:\n    from p.a import x", "p.d": "import p.a"}
    assert cycle(import_graph(closed)) == ["p.a", "p.b", "p.c"]
