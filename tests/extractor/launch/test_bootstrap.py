"""The bootstrap acts in the engine's processes, and only there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparcom_extractor.launch.bootstrap import SubprocessBootstrap, let_vllm_scan_llvmlite

RECEIVER = """
import os, pickle, sys, time
bootstrap = pickle.load(open(sys.argv[1], "rb"))
print(os.getpgrp() == os.getpid(), bootstrap.capture, flush=True)
time.sleep(60)
"""
PARENT = """
import os, pickle, subprocess, sys
from sparcom_extractor.launch.bootstrap import SubprocessBootstrap
pickle.dump(SubprocessBootstrap(True, os.getpid()), open(sys.argv[1], "wb"))
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
sys.stdin.read()
"""


def test_capture_is_part_of_the_compilation_cache_key() -> None:
    """Engines with and without capture never share a compiled graph."""
    assert SubprocessBootstrap(True, 1).compute_hash() != SubprocessBootstrap(False, 1).compute_hash()
    assert SubprocessBootstrap(True, 1).compute_hash() == SubprocessBootstrap(True, 2).compute_hash()
    assert SubprocessBootstrap(True, 1, "kernel").compute_hash() != SubprocessBootstrap(True, 1, "signs").compute_hash()


def test_it_does_nothing_in_the_parent() -> None:
    """vLLM copies its configuration within the process; this process stays in its group."""
    group = os.getpgrp()
    bootstrap = SubprocessBootstrap(capture=True, parent=os.getpid())
    assert pickle.loads(pickle.dumps(bootstrap)) == bootstrap  # noqa: S301
    assert os.getpgrp() == group


@contextmanager
def _family(tmp_path: Path, receiver: str = RECEIVER) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start a parent with a child that runs `receiver`. Yield the parent, and the child's id and output."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "bootstrap"), receiver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        yield parent, parent.stdout.readline().split()
        parent.kill()


def _assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.01)
    assert not _runs(pid), "it outlived its parent"


def test_a_child_leaves_the_group_and_ends_with_its_parent(tmp_path: Path) -> None:
    """Ctrl-C does not reach the engine's process, and the process ends if its parent is killed."""
    with _family(tmp_path) as (parent, (pid, left, capture)):
        assert (left, capture) == ("True", "True")
        parent.send_signal(signal.SIGKILL)
        _assert_ends(int(pid))


@pytest.mark.parametrize(
    "state", ["while True: pass", "os.kill(os.getpid(), signal.SIGSTOP)", "import ctypes; ctypes.PyDLL(None).sleep(60)"]
)
def test_a_busy_or_stuck_child_ends_too(state: str, tmp_path: Path) -> None:
    """In a loop that ignores SIGTERM, stopped, or in a call that holds the interpreter lock."""
    receiver = RECEIVER.replace(
        "time.sleep(60)", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + state
    )
    with _family(tmp_path, receiver) as (parent, (pid, *_)):
        parent.send_signal(signal.SIGKILL)
        _assert_ends(int(pid))


@pytest.mark.parametrize("killed", ["starter", "core"])
def test_a_worker_ends_with_the_core_and_with_the_starter(killed: str, tmp_path: Path) -> None:
    """A grandchild, like a worker below the engine's core, ends when either of the two above it is killed."""
    core = f"""{RECEIVER.replace("time.sleep(60)", "")}
import subprocess
worker = subprocess.Popen([sys.executable, "-c", {RECEIVER!r}, sys.argv[1]], stdout=subprocess.PIPE, text=True)
open(sys.argv[1] + ".worker", "w").write(f"{{worker.pid}} {{worker.stdout.readline()}}")
time.sleep(60)
"""
    with _family(tmp_path, core) as (parent, (pid, *_)):
        said = tmp_path / "bootstrap.worker"
        while not (said.exists() and said.read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(parent.pid if killed == "starter" else int(pid), signal.SIGKILL)
        _assert_ends(int(pid))
        _assert_ends(int(said.read_text().split()[0]))


STARTER = """
import asyncio, subprocess, sys, threading, time
import multiprocessing

from sparcom_extractor.launch.bootstrap import children_end_on_cancel, shield_children_from_interrupts

def sleeping(pipe):
    pipe.send(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)

def spawned():
    shield_children_from_interrupts()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    return child.pid

async def start(pids):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    old = context.Process(target=time.sleep, args=(60,))
    old.start()
    with children_end_on_cancel():
        new = context.Process(target=sleeping, args=(there,))
        new.start()
        pids += [old.pid, new.pid, await asyncio.to_thread(here.recv)]
        await asyncio.sleep(60)

async def main():
    shielded = await asyncio.to_thread(spawned)  # first, because it starts the tracker too
    pids = []
    task = asyncio.create_task(start(pids))
    while len(pids) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    print(*pids, shielded, flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    """A cancelled start kills the processes that it started, and their children, but no others. Children block
    Ctrl-C."""
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        old, new, below, shielded = map(int, parent.stdout.readline().split())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (_runs(new) or _runs(below)):
            time.sleep(0.1)
        assert (_runs(old), _runs(new), _runs(below)) == (True, False, False)
        for pid in (old, shielded):
            blocked = int(Path(f"/proc/{pid}/status").read_text().split("SigBlk:")[1].split()[0], 16)
            assert bool(blocked >> (signal.SIGINT - 1) & 1) == (pid == shielded)
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_exits_quickly_and_silently(tmp_path: Path) -> None:
    """At exit the garbage collector has nothing to do, and Triton prints no list of leaks."""
    bootstrap = tmp_path / "bootstrap"
    bootstrap.write_bytes(pickle.dumps(SubprocessBootstrap(True, os.getpid())))
    code = """
import atexit, gc, pickle, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # runs after handlers registered later
import triton.language
pickle.load(open(sys.argv[1], "rb"))
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(bootstrap)], capture_output=True, text=True, timeout=60, check=True
    )
    assert (child.stdout.strip(), child.stderr) == ("True", "")


def test_llvmlites_library_can_be_scanned_in_the_engines_processes(tmp_path: Path) -> None:
    """vLLM reads `vars(value).get("kernel")` for every attribute of every module, which llvmlite's library could not
    answer. Nothing changes in the parent."""
    bootstrap = tmp_path / "bootstrap"
    bootstrap.write_bytes(pickle.dumps(SubprocessBootstrap(True, os.getpid())))
    code = """
import pickle, sys
import numba
from llvmlite.binding import ffi
before = type(vars(ffi.lib)).__name__
pickle.load(open(sys.argv[1], "rb"))
print(before, vars(ffi.lib).get("kernel"), numba.njit(lambda x: x + 1)(1))
"""
    child = subprocess.run([sys.executable, "-c", code, str(bootstrap)], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["_lib_fn_wrapper", "None", "2"]
    let_vllm_scan_llvmlite({})
    let_vllm_scan_llvmlite({"llvmlite.binding.ffi": object()})
