"""docs/reproduce-the-paper.md and examples/reproduce.sh: the same commands, which the real command line accepts.

`.ci/reproduce` runs the script on tiny models. Here a stand-in for `sparcom` records what the script would run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from sparcom_cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reproduce-the-paper.md"
SCRIPT = ROOT / "examples" / "reproduce.sh"
MODES = {"one GPU": (), "eight GPUs": ("--gpus", "8"), "tiny": ("--tiny",), "tiny, two GPUs": ("--tiny", "--gpus", "2")}
STAND_IN = """#!/bin/sh
echo "${CUDA_VISIBLE_DEVICES:-}|$*" >>log
case "$*" in *"$FAILS"*) exit 1 ;; esac
while [ $# -gt 0 ]; do
    if [ "$1" = --output ]; then mkdir -p "$2"; fi
    shift
done
"""


def dry_run(*options: str) -> tuple[list[list[str]], list[str]]:
    """Return the script's commands as words, without the GPU, and its lines about results."""
    shown = subprocess.run([SCRIPT, "--dry-run", *options], capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if not line.startswith("#")]
    return [words(line) for line in lines], [line[2:] for line in shown.splitlines() if line.startswith("#")]


def words(line: str) -> list[str]:
    """Split a command; leave out `env`, variables before it, and `&` after it."""
    found = shlex.split(line.removesuffix("&"))
    while found[0] == "env" or "=" in found[0]:
        found = found[1:]
    return found


def block(title: str) -> list[str]:
    """Return the commands of the page's first block of code below a heading, continued lines as one."""
    found = re.search(rf"^## {title}\n.*?```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"the page has no commands below {title!r}"
    return re.sub(r"\\\n\s*", "", found[1]).splitlines()


def parse(line: list[str]) -> None:
    """Hand a command to the real command line, which checks its options and values and runs nothing."""
    program, *arguments = line
    assert program == "sparcom"
    command: click.Command | None = cli
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
    assert command is not None, line
    command.make_context("sparcom", arguments).close()


@pytest.mark.parametrize("mode", MODES)
def test_the_command_line_accepts_every_command(mode: str) -> None:
    """No command of the script has a wrong option or value."""
    commands, _ = dry_run(*MODES[mode])
    assert len([line for line in commands if line[1] == "extract"]) == 8
    for line in commands:
        parse(line)


def test_a_wrong_option_is_found() -> None:
    """The check above can fail."""
    with pytest.raises(click.UsageError):
        parse(["sparcom", "dataset", "build", "--sythetic-only"])


def test_the_page_shows_the_commands_of_the_script() -> None:
    """For one GPU, it shows all commands. For eight, it shows the extractions, each on its own GPU, then a wait."""
    assert [words(line) for line in block("Commands for one GPU")] == dry_run()[0]
    *extractions, last = block("Commands for eight GPUs")
    commands, _ = dry_run("--gpus", "8")
    assert [words(line) for line in extractions] == [line for line in commands if line[1] == "extract"]
    assert [line.split()[0] for line in extractions] == [f"CUDA_VISIBLE_DEVICES={gpu}" for gpu in range(8)]
    assert all(line.endswith(" &") for line in extractions)
    assert last == "wait"


def test_the_page_names_the_file_of_every_figure_and_table() -> None:
    """The page's table lists the script's results: figures 3 to 6 and tables 1, 2 and 6."""
    rows = re.findall(r"^\| ((?:Figure|Table) \d): .*\| `(.+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    _, results = dry_run()
    assert [f"{name}: {file}" for name, file in rows] == results
    assert [name for name, _ in rows] == [*(f"Figure {i}" for i in range(3, 7)), "Table 1", "Table 2", "Table 6"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with a stand-in for `sparcom`, which records its calls and makes each output."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sparcom").write_text(STAND_IN)
    (tmp_path / "bin" / "sparcom").chmod(0o755)
    for line in dry_run("--output", "out")[1]:
        file = tmp_path / line.partition(": ")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("made by analyze\n")
    return tmp_path


def run(folder: Path, *options: str, fails: str = "nothing") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; return the finished process and the new calls, each with its GPU and arguments."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        [SCRIPT, "--output", "out", *options],
        cwd=folder,
        env=os.environ | {"PATH": path, "FAILS": fails},
        capture_output=True,
        text=True,
    )
    calls = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    (folder / "log").unlink(missing_ok=True)
    return done, calls


def test_finished_steps_are_skipped(folder: Path) -> None:
    """A second run calls nothing. A missing archive is extracted again, and the later steps run again."""
    done, calls = run(folder)
    assert done.returncode == 0, done.stderr
    assert [call.split("|")[1].split() for call in calls] == [line[1:] for line in dry_run("--output", "out")[0]]
    assert run(folder)[1] == []
    (folder / "out" / "archives" / "Mistral-7B-v0.1.zarr").rmdir()
    _, calls = run(folder)
    assert [call.split("|")[1].split()[0] for call in calls] == ["extract", "verify", "analyze"]


@pytest.mark.parametrize("gpus", ["1", "3"])
def test_a_failed_step_ends_the_run_and_is_repeated(gpus: str, folder: Path) -> None:
    """The exit status is not 0, nothing is analyzed, and the next run starts at the failed step."""
    failing = "Llama-2-13b-chat-hf"
    done, calls = run(folder, "--gpus", gpus, fails=failing)
    assert done.returncode == 1
    assert not any("analyze" in call for call in calls)
    (folder / "out" / "archives" / f"{failing}.zarr").mkdir(exist_ok=True)  # left by an interrupted run
    done, calls = run(folder, "--gpus", gpus)
    assert done.returncode == 0, done.stderr
    assert failing in calls[0]
    assert "analyze" in calls[-1]


def test_models_are_distributed_over_gpus(folder: Path) -> None:
    """Each extraction sees one GPU; the first extractions run on different GPUs."""
    done, calls = run(folder, "--gpus", "3")
    assert done.returncode == 0, done.stderr
    used = {call.split()[2]: call.split("|")[0] for call in calls if "|extract" in call}
    models = [line[3] for line in dry_run()[0] if line[1] == "extract"]
    assert [used[model] for model in models] == ["0", "1", "2", "0", "1", "2", "0", "1"]


def test_a_missing_result_is_an_error(folder: Path) -> None:
    """If the report lacks a figure, the script names the file."""
    (folder / "out" / "report" / "figures" / "layers.svg").unlink()
    done, _ = run(folder)
    assert done.returncode == 1
    assert "these are missing: out/report/figures/layers.svg" in done.stderr


@pytest.mark.parametrize("options", [["--gpus", "0"], ["--gpus"], ["--output", "a b"], ["--fast"]])
def test_wrong_usage(options: list[str]) -> None:
    """Wrong usage gives exit status 2 and the reason."""
    done = subprocess.run([SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
