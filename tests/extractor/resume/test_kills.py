"""Kills of `sparcom extract --resume`, of the engine's core and of its worker lose nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import SparcomError
from sparcom_data.instructions import Instruction
from sparcom_hexainst.build.synthetic import synthetic_instructions
from undisturbed import assert_like, small_chunks_environment

KILLS = int(os.environ.get("SPARCOM_KILLS", "6")) // 3  # per granularity; 10 take half an hour
CORE, WORKER = "VLLM::EngineCore", "VLLM::Worker"
SECONDS = 300.0
OPTIONS = ["--positions", "all", "--max-tokens", "24", "--max-num-seqs", "4", "--max-num-batched-tokens", "64"]


class Command:
    """Starts `sparcom extract --resume`, in all its processes with chunks of few instructions."""

    def __init__(self, folder: Path, model: Path, instructions: list[Instruction], granularity: str) -> None:
        self.source = folder / "in.jsonl"
        self.source.write_text("".join(f"{item.model_dump_json(exclude_none=True)}\n" for item in instructions))
        self.log = folder / "log"
        self._arguments = ["--model", str(model), "--kv-cache-gib", "0.25", "--granularity", granularity, *OPTIONS]
        self._environment = small_chunks_environment(folder)

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sparcom_cli", "extract", "--resume", "--output", str(output)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*command, "--input", str(self.source), *self._arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def run(self, output: Path) -> Archive:
        """Run to the end."""
        assert self.start(output).wait(300) == 0, self.log.read_text()
        return open_archive(output)


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def complete_in(output: Path) -> int:
    try:
        return len(open_archive(output).instructions.complete)
    except SparcomError:
        return 0


def processes_of(command: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    return {process.name(): process for process in psutil.Process(command.pid).children(recursive=True)}


def kill_in_run(command: Command, output: Path, victim: str, seconds: float) -> None:
    """Resume, and kill one process `seconds` after the first commit. All others must end too."""
    before, running = complete_in(output), command.start(output)
    try:
        wait_for(lambda: complete_in(output) > before or running.poll() is not None)
        time.sleep(seconds)
        assert running.poll() is None, f"it ended before the kill: {command.log.read_text()}"
        processes = processes_of(running)
        (running if victim == "command" else processes[victim]).kill()
        status = running.wait(SECONDS)
        psutil.wait_procs(processes.values(), timeout=SECONDS / 10)
        assert not [process for process in processes.values() if process.is_running()], f"outlived {victim}"
        if victim != "command":
            assert status == 1, command.log.read_text()
            assert "To continue, run the same command with --resume" in command.log.read_text()
    finally:
        running.kill()
        running.wait()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900 + 80 * KILLS)
@pytest.mark.parametrize("granularity", ["token", "count"])
def test_kills_lose_and_double_nothing(
    granularity: str, tiny_model: Callable[[str], Path], tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """After kills at random moments, the archive equals that of an undisturbed run: same instructions, token ids
    and responses, and masks or counts up to rounding. No process outlives the command, and no partial file stays."""
    instructions = [
        item.model_copy(update={"text": f"{number} {item.text} {item.text}"})
        for number, item in enumerate(synthetic_instructions(10 + 3 * KILLS))
    ]
    command = Command(tmp_path, tiny_model("llama"), instructions, granularity)
    expected = command.run(tmp_path / "whole.zarr")
    output, rng, killed = tmp_path / "a.zarr", np.random.default_rng(len(granularity)), list[str]()
    while len(killed) < KILLS:
        victim = str(rng.choice(["command", CORE, WORKER]))
        kill_in_run(command, output, victim, rng.uniform(0, 0.7))
        killed.append(victim)
    record_property("killed", killed)
    assert complete_in(output) < len(instructions), "the kills must hit running jobs"
    archive = command.run(output)
    assert_like(archive, expected)
    assert list(tmp_path.rglob("*.partial")) == []
