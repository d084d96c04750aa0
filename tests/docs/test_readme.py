"""The service of README.md, with commands as they stand there, and a kill in the middle."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.archive import open_archive
from sparcom_hexainst.build.synthetic import synthetic_instructions

ROOT = Path(__file__).parents[2]
COUNT = 480


def commands(folder: Path) -> list[list[str]]:
    """Return the arguments of the three commands, in this folder, at a free port, for a tiny model."""
    from sparcom_models import make_tiny_model

    make_tiny_model("llama", folder / "tiny", tokenizer=ROOT / "models" / "smollm2-135m-instruct")
    long = [item.model_copy(update={"text": item.text * 2}) for item in synthetic_instructions(COUNT // 6)]
    (folder / "in.jsonl").write_text("\n".join(item.model_dump_json(exclude_defaults=True) for item in long))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    (block,) = re.findall(r"```sh\n(sparcom serve .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for old, new in {
        "8000": port,
        "models/smollm2-135m-instruct": str(folder / "tiny"),
        "examples/instructions.jsonl": "in.jsonl",
    }.items():
        assert old in block
        block = block.replace(old, new)
    return [[sys.executable, "-m", "sparcom_cli", *shlex.split(line)[1:]] for line in block.splitlines()]


@pytest.mark.engine
@pytest.mark.slow
def test_a_job_survives_a_killed_server(tmp_path: Path) -> None:
    """The server is killed after the first commit of the job and started again. `submit --wait` ends well, all
    instructions are complete, and the analysis of the served archive writes its figures."""
    serve, submit, analyze = commands(tmp_path)
    archive = tmp_path / "sparcom-data" / "archives" / "first.zarr"
    started: list[subprocess.Popen[Any]] = []

    def start(command: list[str]) -> subprocess.Popen[Any]:
        with (tmp_path / "log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ))
        return started[-1]

    def log() -> str:
        return (tmp_path / "log").read_text()

    try:
        server = start([*serve, "--kv-cache-gib", "0.25", "--max-num-batched-tokens", "64"])
        waiting = start(submit)
        while not (archive / "zarr.json").exists() or len(open_archive(archive).instructions.complete) == 0:
            assert server.poll() is None, log()
            assert waiting.poll() is None, log()
            time.sleep(0.01)
        server.kill()
        server.wait()
        partial = len(open_archive(archive).instructions.complete)
        assert 0 < partial < COUNT
        assert waiting.poll() is None
        start([*serve, "--kv-cache-gib", "0.25"])
        assert waiting.wait(300) == 0, log()
        assert len(open_archive(archive).instructions.complete) == COUNT
        analysis = subprocess.run(analyze, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert analysis.returncode == 0, analysis.stderr
        assert (tmp_path / "first-report" / "report.html").stat().st_size > 10_000
        assert list((tmp_path / "first-report").rglob("*.pdf"))
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)
