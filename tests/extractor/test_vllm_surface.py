"""Everything that SPARCOM reads of vLLM is declared in `vllm_surface/` and listed in docs/vllm-surface.md.

SPARCOM_REWRITE=1 pytest tests/extractor/test_vllm_surface.py   regenerates the page

"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "extractor" / "sparcom_extractor"
SURFACE = PACKAGE / "vllm_surface"
PAGE = ROOT / "docs" / "vllm-surface.md"
MAY_IMPORT = {PACKAGE / "worker" / "cpu.py", PACKAGE / "worker" / "gpu.py"}  # subclasses of vLLM's workers
TESTED = "0.32.0"  # the version that every test runs with
VERSION = re.compile(r"(?:(?:from|before) )?\b\d+\.\d+(?:\.\d+)?\b")
CLASS = re.compile(r"\bvllm(?:\.\w+)+")

INTRODUCTION = """\
# Parts of vLLM that SPARCOM uses

Generated from `extractor/sparcom_extractor/vllm_surface/`; a test compares page and code. To regenerate it:

    SPARCOM_REWRITE=1 .venv/bin/python -m pytest tests/extractor/test_vllm_surface.py

No other file imports vLLM, except the two subclasses of vLLM's workers (`worker/cpu.py`, `worker/gpu.py`).
`vllm_surface/versions.py` also reads the list `QuantizationMethods` from vLLM's source. To support another version of
vLLM, check each line below against its source.

"Read by" names the modules that import the declaring module and read an attribute of that name. Where there are none,
it names every module that reads such an attribute. "Versions" lists the releases whose sources were compared, or that
ran. Every test runs with 0.32.0.
"""


@dataclass(frozen=True)
class Described:
    """One Protocol and the module that declares it. versions: of vLLM, as stated by its docstring or the module's."""

    name: str
    doc: str
    attributes: dict[str, str]
    versions: str
    module: Path

    @property
    def vllm_class(self) -> str:
        found = CLASS.search(self.doc)
        return found[0] if found else ""


def attributes_of(node: ast.ClassDef) -> dict[str, str]:
    """Return the attributes and methods of a Protocol, with their types."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = ast.unparse(item.annotation)
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            found[f"{item.name}()"] = ast.unparse(item.returns) if item.returns else ""
    return found


def protocols_of(path: Path) -> Iterator[Described]:
    tree = ast.parse(path.read_text())
    common = VERSION.findall(ast.get_docstring(tree) or "")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
            doc = ast.get_docstring(node) or ""
            versions = ", ".join(VERSION.findall(doc) or common or [TESTED])
            yield Described(node.name, doc, attributes_of(node), versions, path)


@cache
def described() -> tuple[Described, ...]:
    return tuple(item for path in sorted(SURFACE.glob("*.py")) for item in protocols_of(path))


def names_read(tree: ast.AST) -> set[str]:
    """Return the names of attributes that a source reads, by a dot or by getattr."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr"}:
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


@cache
def surface_used(path: Path) -> frozenset[str]:
    """Return the surface modules that a module imports, directly or through another one, and itself if it is one."""
    tree = ast.parse(path.read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    direct = {name.rsplit(".", 1)[1] for name in imported if name.startswith("sparcom_extractor.vllm_surface.")}
    below = [surface_used(SURFACE / f"{name}.py") for name in direct]
    return frozenset({path.stem} if path.parent == SURFACE else ()).union(direct, *below)


@cache
def readers() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Return, per module of the package, the names that it reads and the surface modules that it uses."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {
        str(path.relative_to(PACKAGE)): (frozenset(names_read(ast.parse(path.read_text()))), surface_used(path))
        for path in paths
    }


def readers_of(item: Described, attribute: str) -> list[str]:
    """Return the modules that read an attribute: those that import its declaration, or any if none of them does."""
    name = attribute.removesuffix("()")
    read = [path for path, (names, _) in readers().items() if name in names]
    return [path for path in read if item.module.stem in readers()[path][1]] or read


def imports_of_vllm(path: Path) -> list[str]:
    """Return the names that a source imports from vLLM, including imports in functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"]
    return found


def page() -> str:
    """Return docs/vllm-surface.md, generated from the code."""
    lines = [INTRODUCTION, "## Attributes", ""]
    lines += ["| vLLM class | attribute | type | read by | versions |", "| --- | --- | --- | --- | --- |"]
    for item in described():
        described_class = f"`{item.vllm_class}`" if item.vllm_class else item.doc.splitlines()[0].rstrip(".")
        for attribute, kind in item.attributes.items():
            modules = ", ".join(readers_of(item, attribute))
            cell = kind.replace("|", "\\|")
            lines.append(f"| {described_class} | `{attribute}` | `{cell}` | {modules} | {item.versions} |")
    lines += ["", "## Imports", "", "| name | imported by |", "| --- | --- |"]
    for path in sorted([*SURFACE.glob("*.py"), *MAY_IMPORT]):
        names = dict.fromkeys(imports_of_vllm(path))
        lines += [f"| `{name}` | {path.relative_to(PACKAGE)} |" for name in names]
    return "\n".join(lines) + "\n"


def test_the_page_lists_what_the_code_declares() -> None:
    """docs/vllm-surface.md has one row per attribute of each Protocol, and per import."""
    if os.environ.get("SPARCOM_REWRITE"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run this test with SPARCOM_REWRITE=1"


def test_only_the_surface_imports_vllm() -> None:
    """No file outside vllm_surface/ and the two worker classes imports vLLM."""
    others = [path for path in PACKAGE.rglob("*.py") if path.parent != SURFACE and path not in MAY_IMPORT]
    assert {str(path.relative_to(PACKAGE)): names for path in others if (names := imports_of_vllm(path))} == {}


def test_the_walk_sees_imports_in_functions(tmp_path: Path) -> None:
    """An import in a function or with an alias is found; a name with the same beginning is not."""
    source = tmp_path / "a.py"
    source.write_text("import vllm.a as b\nimport vllm_other\ndef f():\n    from vllm.c import d, e\n")
    assert imports_of_vllm(source) == ["vllm.a", "vllm.c.d", "vllm.c.e"]


@pytest.mark.parametrize("item", described(), ids=lambda item: item.name)
def test_every_declared_attribute_is_read(item: Described) -> None:
    """A Protocol lists only attributes that are read."""
    assert [name for name in item.attributes if not readers_of(item, name)] == []


VLLM = Path(next(iter(find_spec("vllm").submodule_search_locations or [])))  # type: ignore[union-attr]


def find_class(path: str) -> tuple[ast.ClassDef, ast.Module] | None:
    """Find a class of the installed vLLM by its dotted path, through re-exports; reads the source, without an
    import."""
    module, _, name = path.rpartition(".")
    base = VLLM.parent / module.replace(".", "/")
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not module or not file.is_file():
        return None
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, tree
    return find_class(imported) if (imported := import_path(tree, name, module)) else None


def import_path(tree: ast.Module, name: str, module: str = "") -> str:
    """Return the module that a name is imported from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            parent = module.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            return f"{parent}{node.module}.{name}"
    return ""


def defined_names(path: str) -> set[str]:
    """Return the names that a class of vLLM and its bases define: methods, annotations, and attributes set on self."""
    found = find_class(path)
    if found is None:
        return set()
    node, tree = found
    attributes = [item for item in ast.walk(node) if isinstance(item, ast.Attribute)]
    names = {item.attr for item in attributes if ast.unparse(item.value) == "self"}
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(item.name)
        elif isinstance(item, ast.AnnAssign | ast.Assign):
            names |= {ast.unparse(target) for target in getattr(item, "targets", [getattr(item, "target", None)])}
    module = path.rpartition(".")[0]
    for base in (ast.unparse(base).split("[")[0] for base in node.bases):
        names |= defined_names(import_path(tree, base) or f"{module}.{base}")
    return names


def words_near(path: str) -> set[str]:
    """Return the words in a class's module, or in all modules of vLLM's MoE package: subclasses have more
    attributes."""
    module = VLLM.parent / path.rpartition(".")[0].replace(".", "/")
    moe = next((folder for folder in module.parents if folder.name == "fused_moe"), None)
    files = moe.rglob("*.py") if moe else [module.with_suffix(".py")]
    return set(re.findall(r"\w+", " ".join(file.read_text() for file in files if file.is_file())))


CHECKED = [item for item in described() if find_class(item.vllm_class)]


@pytest.mark.parametrize("item", CHECKED, ids=lambda item: item.name)
def test_the_installed_vllm_has_the_attributes(item: Described) -> None:
    """Each class of vLLM that a Protocol names defines every attribute, itself, in a base, or in a nearby subclass."""
    missing = {name.removesuffix("()") for name in item.attributes} - defined_names(item.vllm_class)
    assert not missing or not missing - words_near(item.vllm_class), f"{item.vllm_class} of the installed vLLM"
