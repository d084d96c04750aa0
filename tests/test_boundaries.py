"""The project's boundaries: allowed imports, light packages, and names that the documents must mention."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sparcom_cli.main import COMMANDS, cli
from sparcom_data.schema import INSTRUCTION_ARRAYS, array_specs, origin_specs
from sparcom_data.schema.metadata import MoeInfo
from sparcom_data.testing import random_attributes, write_random_moe_archive

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "sparcom_data": "data",
    "sparcom_hexainst": "data",
    "sparcom_extractor": "extractor",
    "sparcom_models": "extractor",
    "sparcom_verification": "extractor",
    "sparcom_server": "server",
    "sparcom_client": "server",
    "sparcom_analysis": "analysis",
    "sparcom_cli": "cli",
}
ALLOWED = {
    "sparcom_data": set[str](),
    "sparcom_hexainst": {"sparcom_data"},
    "sparcom_extractor": {"sparcom_data"},
    "sparcom_models": {"sparcom_data", "sparcom_hexainst", "sparcom_extractor"},
    "sparcom_verification": {"sparcom_data", "sparcom_extractor", "sparcom_models"},
    "sparcom_analysis": {"sparcom_data"},
    "sparcom_client": {"sparcom_data"},
    "sparcom_server": {"sparcom_data", "sparcom_extractor", "sparcom_analysis"},
    "sparcom_cli": set(FOLDERS),
}
# The extra `dataset`, imported only by its commands, never to read or write an archive.
DATASET = {"huggingface_hub", "jinja2", "py3langid", "pyarrow", "sklearn", "tokenizers"}
# Allowed libraries: archives are read and analyzed in installs without torch, vLLM or a server.
OUTSIDE = {
    "sparcom_data": {"numpy", "zarr", "pydantic", "crc32c", "numcodecs", "huggingface_hub"},
    "sparcom_hexainst": {"numpy", "pydantic"} | DATASET,
    "sparcom_analysis": {"numpy", "zarr", "numba", "matplotlib", "jinja2", "pydantic", "xarray"},
    "sparcom_client": {"httpx", "httpx_sse", "pydantic", "rich"},
}
NOUNS = "number|folder|seed of|device|experts|routed|neurons|instructions|precision|path|passes|peak"
VALUES = re.compile(rf"(the|an?|as|of|with|{NOUNS})\b", re.IGNORECASE)
HEAVY = ["torch", "vllm", "transformers", "numba", "matplotlib", "fastapi", "zarr", "numpy"]
MIXED = random_attributes(
    1, 16, moe=MoeInfo(layer_ids=[1], experts=4, experts_per_token=2, neurons=8, shared_neurons=8)
).model  # a model with every kind of neuron
MODULE_NAME = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:\.\w+)*(?::\w+)?")


def modules(package: str) -> list[Path]:
    """Return every source file of a package."""
    found = sorted((ROOT / FOLDERS[package] / package).rglob("*.py"))
    assert found, package
    return found


def imported(source: str) -> Iterator[str]:
    """Return the modules that a source imports anywhere: in functions, under TYPE_CHECKING, or named in a string.

    Relative imports stay within their package and are left out.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_NAME.fullmatch(node.value):
            yield node.value


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_point_one_way(package: str) -> None:
    """Imports point along server → extractor → data, server → analysis → data, verification → models → extractor."""
    ours = ALLOWED[package] | {package}
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules(package)
        for name in imported(file.read_text())
        if name.split(".")[0] in FOLDERS and name.split(".")[0] not in ours
    }
    assert not wrong


@pytest.mark.parametrize("package", OUTSIDE)
def test_light_packages_stay_light(package: str) -> None:
    """The data packages, the analysis and the client import only libraries that their installation provides."""
    known = OUTSIDE[package] | sys.stdlib_module_names | set(FOLDERS)
    used = {name.split(".")[0] for file in modules(package) for name in imported(file.read_text())}
    assert used <= known, used - known


def test_the_walk_sees_every_kind_of_import() -> None:
    """Imports in a function, for types only, with an alias, or as a string are found."""
    source = '''
"""sparcom_cli"""
from . import sparcom_server
if TYPE_CHECKING:
    import sparcom_data.archive as a
def f():
    from sparcom_server.app import create_app
    return importlib.import_module("sparcom_analysis.report.run"), "sparcom_extractor.worker:Worker", "of sparcom_cli"
'''
    assert set(imported(source)) == {
        "sparcom_cli",
        "sparcom_data.archive",
        "sparcom_server.app",
        "sparcom_analysis.report.run",
        "sparcom_extractor.worker:Worker",
    }


def test_every_source_file_belongs_to_a_package() -> None:
    """These tests cover every package."""
    found = {path.parent.name for folder in ROOT.iterdir() for path in folder.glob("sparcom_*/__init__.py")}
    assert found == set(FOLDERS)


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_help_is_quick() -> None:
    """`sparcom --help` lists every command, but imports neither heavy libraries nor commands."""
    loaded = loaded_after(
        "import sys\nsys.argv = ['sparcom', '--help']\nimport sparcom_cli.main as m\n"
        "try:\n    m.main()\nexcept SystemExit:\n    assert not [n for n in sys.modules if n.startswith('sparcom_cli.')"
        " and n != 'sparcom_cli.main']"
    )
    assert not loaded & set(HEAVY)
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.help)}$", result.output, re.MULTILINE), name


def test_importing_the_extractor_starts_nothing() -> None:
    """`import sparcom_extractor` imports neither torch nor vLLM."""
    assert not loaded_after("import sparcom_extractor") & {"torch", "vllm", "transformers"}


def test_the_writer_needs_numpy_alone() -> None:
    """The writer of chunks imports neither torch nor vLLM, so it could run in its own process."""
    assert not loaded_after("import sparcom_extractor.writer.session") & {"torch", "vllm", "transformers", "triton"}


def test_the_analysis_needs_no_engine_and_no_server() -> None:
    """`import sparcom_analysis` and its pipeline import neither torch nor vLLM nor FastAPI."""
    loaded = loaded_after("import sparcom_analysis, sparcom_analysis.report.run, sparcom_data.verify")
    assert not loaded & {"torch", "vllm", "transformers", "fastapi", "sparcom_extractor", "sparcom_server"}


def test_the_client_is_light() -> None:
    """`import sparcom_client` imports neither torch nor FastAPI, and no array library before an archive is opened."""
    assert not loaded_after("import sparcom_client") & {*HEAVY, "sparcom_server", "sqlalchemy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str) -> None:
    """Each command in the table loads and prints its help."""
    result = CliRunner().invoke(cli, [name, "--help"], prog_name="sparcom")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: sparcom {name}")
    assert len(result.output.splitlines()) > 4, "help needs more than a usage line"


def every_option(command: click.Command) -> Iterator[click.Option]:
    """Yield the options of a command and of its subcommands."""
    yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from every_option(below)


def test_help_of_options_starts_with_a_verb() -> None:
    """Every option's help is a sentence that starts with a verb, not with a noun for the value."""
    options = list(every_option(cli))
    assert len(options) > 80
    for option in options:
        assert option.help, option.name
        assert not VALUES.match(option.help), f"{option.name}: {option.help}"


@pytest.mark.parametrize(
    "spec",
    [*array_specs(MIXED, "token"), *origin_specs("token"), *array_specs(MIXED, "count")[len(INSTRUCTION_ARRAYS) :]],
    ids=lambda spec: spec.name,
)
def test_every_array_is_documented(spec: object) -> None:
    """docs/archive-format.md has one line per array, with dtype and dimensions."""
    name, dtype, dimensions = spec.name, spec.dtype, spec.dimensions  # type: ignore[attr-defined]
    text = (ROOT / "docs" / "archive-format.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:4] == [dtype, ", ".join(dimensions)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    """Every command is named in the README or in docs/."""
    pages = [(ROOT / "README.md").read_text(), *(page.read_text() for page in (ROOT / "docs").glob("*.md"))]
    assert any(re.search(rf"\bsparcom {name}\b", page) for page in pages)


def test_documented_python_runs(tmp_path: Path) -> None:
    """The snippets of docs/archive-format.md for local archives run unchanged on small archives."""
    text = (ROOT / "docs" / "archive-format.md").read_text()
    snippets = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "://" not in code]
    golden = ROOT / "tests" / "data" / "golden"
    write_random_moe_archive(tmp_path / "moe.zarr")
    archives = {"A": golden / "v1.zarr", "COUNTS": golden / "v1-count.zarr", "MOE": tmp_path / "moe.zarr"}
    ran = set()
    for code in snippets:
        (name,) = re.findall(r'"(\w+)\.zarr"', code)
        ran.add(name)
        exec(compile(code.replace(f"{name}.zarr", str(archives[name])), "docs/archive-format.md", "exec"), {})  # noqa: S102
    assert ran == set(archives)
