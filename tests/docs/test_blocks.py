"""The shell and Python blocks of README.md and the pages run unchanged, page by page, from top to bottom.

Each page runs in a new folder with links to models/ and examples/ and with small archives. `<!-- not run: REASON -->`
on the line above a block skips it; its `sparcom` commands must still parse. Blocks in other languages are not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from sparcom_cli.main import cli
from sparcom_data.testing import write_random_archive, write_random_moe_archive

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "models" / "smollm2-135m-instruct"
# Run by tests of their own: tests/analysis/whole/test_python_page.py, tests/docs/test_reproduce.py.
TESTED_ELSEWHERE = {"docs/python.md", "docs/reproduce-the-paper.md"}
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/howto").glob("*.md"))]
]
BLOCK = re.compile(
    r"(?:^ *<!-- not run:(?P<reason>.*?)-->\n)?^(?P<indent> *)```(?P<kind>sh|python)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
NEEDS_ENGINE = re.compile(r"sparcom (extract|serve|submit|selftest|demo|model)|--reference|curl ")
SECONDS = 300
TUTORIAL_ARCHIVES: list[Path] = []
# Runs the blocks of one page: shell blocks in bash, Python blocks in one namespace.
DRIVER = """
import json, subprocess, sys, matplotlib
matplotlib.use("agg")
names = {"__name__": "__main__"}
for number, (kind, code) in enumerate(json.load(open(sys.argv[1])), 1):
    print(f"== block {number}", code, sep="\\n", flush=True)
    if kind == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
    else:
        exec(compile(code, f"block {number}", "exec"), names)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` is None if the block is run."""

    kind: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each `sparcom` command."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.kind == "sh" else []
        split = [shlex.split(line, comments=True) for line in lines if line.strip().startswith("sparcom ")]
        return [[word for word in words if word != "&"] for words in split]


def blocks(text: str) -> list[Block]:
    """Return the shell and Python blocks of a page."""
    return [Block(found["kind"], textwrap.dedent(found["code"]), found["reason"]) for found in BLOCK.finditer(text)]


def read(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text(encoding="utf-8"))


def runnable(page: str) -> list[Block]:
    return [] if page in TESTED_ELSEWHERE else [block for block in read(page) if block.reason is None]


def parse_command(words: list[str]) -> None:
    """Parse a `sparcom` command without running it; options must exist and have values, and none may be missing."""
    command: click.Command = cli
    context, rest = click.Context(cli, info_name="sparcom"), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"there is no command {rest[0]!r}")
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    values, left, _ = command.make_parser(context).parse_args(rest)
    if left:
        raise click.UsageError(f"unexpected: {' '.join(left)}")
    if "help" in values:
        return
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if parameter.required and not isinstance(value, str) and not (isinstance(value, tuple | list) and any(value)):
            raise click.UsageError(f"{parameter.name} is missing")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            parameter.type.convert(value, parameter, context)


def page_parameters() -> Iterator[object]:
    for page in PAGES:
        if found := runnable(page):
            needs_engine = any(NEEDS_ENGINE.search(block.code) for block in found)
            yield pytest.param(page, id=page, marks=[pytest.mark.engine, pytest.mark.slow] if needs_engine else [])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random archives under the names that the pages use."""
    folder = tmp_path_factory.mktemp("archives")
    shape = {"categories": ["CLS", "CODE", "SUM"], "per_category": 6, "sources": ["synthetic", "FLAN"]}
    for seed, name in enumerate(("run", "base", "tuned", "base2", "tuned2")):
        write_random_archive(folder / f"{name}.zarr", neurons=64, seed=seed, lengths=(9, 16), **shape)
    write_random_archive(folder / "origins.zarr", neurons=64, lengths=(9, 16), origins=True, **shape)
    for name in ("moe", "MOE"):
        write_random_moe_archive(folder / f"{name}.zarr", lengths=(9, 16), **shape)
    for name in ("counts", "COUNTS"):
        write_random_archive(folder / f"{name}.zarr", granularity="count", **shape)
    return folder


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive that an engine wrote, for pages that verify one. The tutorial's, if it ran, saves an engine."""
    if TUTORIAL_ARCHIVES:
        return TUTORIAL_ARCHIVES[0]
    path = tmp_path_factory.mktemp("extracted") / "run.zarr"
    source = ROOT / "examples" / "instructions.jsonl"
    code = f"sparcom extract --model {DEMO_MODEL} --input {source} --output {path}"
    subprocess.run(shlex.split(code), check=True, env=environment(), timeout=SECONDS)
    return path


def environment() -> dict[str, str]:
    """Return an environment with `sparcom` on the PATH and without `python -W error`."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("page", list(page_parameters()))
def test_blocks_run(page: str, archives: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every block that is not marked exits with status 0, after those above it."""
    found = runnable(page)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / DEMO_MODEL.name).symlink_to(DEMO_MODEL.resolve())
    for path in archives.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if any("verify run.zarr" in block.code for block in found) and "--output run.zarr" not in str(found):
        (tmp_path / "run.zarr").unlink()
        (tmp_path / "run.zarr").symlink_to(request.getfixturevalue("extracted"))
    for block in found:
        for name in re.findall(r"--output (\S+\.zarr)", block.code):
            (tmp_path / name).unlink(missing_ok=True)
    port = str(free_port())
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps([(block.kind, block.code.replace("8000", port)) for block in found]))
    log = tmp_path / "log"
    with log.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, steps],
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = driver.wait(SECONDS)
        finally:
            stop_group(driver.pid)
    assert status == 0, f"{page}:\n{log.read_text()[-4000:]}"
    TUTORIAL_ARCHIVES.extend(tmp_path.glob("questions.zarr"))


def stop_group(group: int) -> None:
    """End what a page left running, such as a server: SIGTERM, and SIGKILL after ten seconds."""
    for sent, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        try:
            os.killpg(group, sent)
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    """Each `sparcom` command of a page has a command, options and values that exist, run or not."""
    problems = []
    for block in read(page):
        for words in block.commands:
            try:
                parse_command(words)
            except click.UsageError as error:
                problems.append(f"{' '.join(words)}: {error.format_message()}")
    assert not problems


@pytest.mark.parametrize("page", PAGES)
def test_skipped_blocks_have_a_reason(page: str) -> None:
    """Each mark holds a reason of a few words and stands directly above a block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    reasons = [block.reason for block in blocks(text) if block.reason is not None]
    assert all(len(reason.split()) >= 2 for reason in reasons)
    assert len(reasons) == text.count("<!-- not run")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sparcom extrakt --model m", "no command"),
        ("sparcom extract --model m --input i --output o --colour red", "colour"),
        ("sparcom extract --model m --input i", "missing"),
        ("sparcom extract --model m --input i --output o --positions none", "none"),
        ("sparcom verify", "missing"),
        ("sparcom model tune", "missing"),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str) -> None:
    """Unknown and missing commands and options, and invalid choices, are reported."""
    with pytest.raises(click.UsageError) as raised:
        parse_command(shlex.split(line))
    assert problem in raised.value.format_message()


def test_blocks_are_found() -> None:
    """The search handles marks, comments, continued lines and other languages."""
    text = "<!-- not run: no GPU -->\n```sh\nsparcom x \\\n  --y  # z\n```\n\n"
    text += "```text\nsparcom no\n```\n```python\n1\n```\n"
    skipped, run = blocks(text)
    assert (skipped.reason, skipped.commands) == (" no GPU ", [["sparcom", "x", "--y"]])
    assert (run.kind, run.code, run.reason) == ("python", "1\n", None)


def test_blocks_of_lists_are_found() -> None:
    """A block may be part of a list, with its mark."""
    (found,) = blocks("1. First\n   <!-- not run: no GPU -->\n   ```sh\n   sparcom x\n   ```\n")
    assert (found.reason, found.code) == (" no GPU ", "sparcom x\n")
