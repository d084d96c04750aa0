"""`sparcom` loads commands on demand, prints errors on one line, and gives the documented exit statuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from sparcom_cli import main as module
from sparcom_data.errors import EngineError, InvalidInputError
from sparcom_data.extras import install_command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run `sparcom ARGUMENTS` in this process; return the exit status."""
    monkeypatch.setattr(sys, "argv", ["sparcom", *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


def replace_extract(monkeypatch: pytest.MonkeyPatch, body: Callable[[], None]) -> None:
    """Replace the command `sparcom extract`."""
    monkeypatch.setattr("sparcom_cli.extract.extract", click.command("extract")(body))


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_help_lists_every_command_without_loading_any() -> None:
    """--help is fast: it imports no command, no engine and no plotting library."""
    code = (
        "import sys; sys.argv = ['sparcom', '--help']\n"
        "from sparcom_cli.main import COMMANDS, main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "heavy = {'torch', 'vllm', 'zarr', 'numpy', 'matplotlib', 'fastapi', 'sparcom_cli.extract'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "print(*COMMANDS)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shown, names = done.stdout.strip().splitlines()
    for name in names.split():
        assert any(line.split()[:1] == [name] for line in shown), name


@pytest.mark.parametrize("name", sorted(module.COMMANDS))
def test_every_command_exists(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command in the table exists and has a help text."""
    assert run(monkeypatch, name, "--help") == 0
    assert f"Usage: sparcom {name}" in capsys.readouterr().out


def test_errors_are_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A SparcomError prints its message on standard error and gives status 1."""
    replace_extract(monkeypatch, raising(InvalidInputError(["one rule", "another rule"])))
    assert run(monkeypatch, "extract") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: one rule\nanother rule\n")


def test_the_status_of_the_command_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sparcom` exits with the status of the command, or 0 if it returns none."""
    replace_extract(monkeypatch, raising(SystemExit(1)))
    assert run(monkeypatch, "extract") == 1
    replace_extract(monkeypatch, lambda: None)
    assert run(monkeypatch, "extract") == 0


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted command exits with the shell's status for interrupts."""
    replace_extract(monkeypatch, raising(KeyboardInterrupt()))
    assert run(monkeypatch, "extract") == 130


@pytest.mark.parametrize("arguments", [["no-such-command"], ["extract", "--no-such-option"], ["extract"], []])
def test_wrong_usage_is_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown command, option or argument prints the usage on standard error and gives status 2."""
    assert run(monkeypatch, *arguments) == 2
    assert "Usage: sparcom" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["extract", "verify", "analyze", "submit", "serve", "demo"])
def test_a_missing_extra_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the command, the missing package, and the extras to install."""
    entry = module.COMMANDS[name]
    missing = raising(ModuleNotFoundError("No module named 'absent'", name="absent.part"))
    place = f"sparcom_cli.remote.{name}" if name == "submit" else f"sparcom_cli.{name}"
    monkeypatch.setattr(f"{place}.{name}", click.command(name)(missing))
    assert run(monkeypatch, name) == 1
    said = capsys.readouterr().err
    assert f"`sparcom {name}` needs the package 'absent', which is not installed" in said
    assert install_command(",".join(extra.split("|")[0] for extra in entry.extras)) in said


@pytest.mark.parametrize("name", ["sparcom_data.gone", None])
def test_an_internal_import_error_keeps_its_traceback(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing SPARCOM module is not reported as an extra, nor is an import error without a name."""
    replace_extract(monkeypatch, raising(ModuleNotFoundError("gone", name=name)))
    monkeypatch.setattr(sys, "argv", ["sparcom", "extract"])
    with pytest.raises(ModuleNotFoundError):
        module.main()


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unexpected errors are not hidden."""
    replace_extract(monkeypatch, raising(RuntimeError("unforeseen")))
    monkeypatch.setattr(sys, "argv", ["sparcom", "extract"])
    with pytest.raises(RuntimeError, match="unforeseen"):
        module.main()


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m sparcom_cli` is `sparcom`."""
    import runpy

    replace_extract(monkeypatch, raising(EngineError("as sparcom")))
    monkeypatch.setattr(sys, "argv", ["whatever", "extract"])
    with pytest.raises(SystemExit):
        runpy.run_module("sparcom_cli", run_name="__main__")
    assert capsys.readouterr().err == "error: as sparcom\n"
