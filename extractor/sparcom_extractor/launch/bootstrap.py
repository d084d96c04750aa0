"""Set up each process of an engine as it unpickles `additional_config`, a field of vLLM's configuration.

1. Capture becomes part of vLLM's compilation cache key: a graph compiled without capture is never used with it.
2. The process leaves the terminal's process group. Otherwise Ctrl-C would stop vLLM in the middle of a step. Only the
   parent receives it, finishes running requests, and stops its children.
3. The process is killed if its parent or the process that started the engine dies, however busy it is. vLLM's own
   processes would wait forever, keep their memory, and might still write to an archive that is resumed.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from multiprocessing import resource_tracker
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
OP_VERSION = 3  # increment when the op's schema or meaning changes: cached graphs call it by name


@dataclass(slots=True)
class SubprocessBootstrap:
    """SIDE EFFECTS ON UNPICKLE: outside `parent` it changes the process group, exit handlers and loaded modules."""

    capture: bool  # whether the engine captures
    parent: int  # id of the process that starts the engine
    fusion: str = ""  # source of the activation outputs; the worker sets it before compilation
    report: str = ""  # file for the reason why the model did not load

    def compute_hash(self) -> str:
        """Return this configuration's part of vLLM's compilation cache key."""
        return f"sparcom-op-{OP_VERSION}-capture-{int(self.capture)}-{self.fusion}"

    def __reduce__(self) -> tuple[Callable[..., SubprocessBootstrap], tuple[Any, ...]]:
        return _unpickle, astuple(self)


def _unpickle(capture: bool, parent: int, fusion: str, report: str) -> SubprocessBootstrap:
    if os.getpid() != parent:
        let_vllm_scan_llvmlite(sys.modules)
        os.setpgid(0, 0)
        atexit.register(_exit_quickly)
        _end_with(parent)
    return SubprocessBootstrap(capture, parent, fusion, report)


def let_vllm_scan_llvmlite(modules: Mapping[str, Any]) -> None:
    """Give llvmlite's lazy library an empty `__dict__`, if llvmlite is loaded.

    At start-up, vLLM's CPU worker reads `vars(value).get("kernel")` for every attribute of every module. llvmlite
    returns a C function for any name, even `__dict__`. This crashed the worker in programs that import Numba, such as
    our analysis. llvmlite looks up its function table first, so the entry goes there.
    """
    ffi = modules.get("llvmlite.binding.ffi")
    table = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(table, dict):
        table["__dict__"] = {}


def _exit_quickly() -> None:
    """Freeze the garbage collector before interpreter exit, and silence Triton's output after it.

    Collecting everything that vLLM and torch allocated takes seconds, and vLLM kills processes that exit slowly.
    """
    gc.freeze()
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with(parent: int) -> None:
    """Kill this process when its direct parent or `parent` dies.

    The kernel does so for the direct parent, even if this process is stopped or holds the interpreter lock. It acts
    when the thread that started this process ends, so `CaptureEngine` keeps that thread. A thread here waits for both.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    waiting = select.poll()
    try:
        for process in {os.getppid(), parent}:
            waiting.register(os.pidfd_open(process), select.POLLIN)
    except ProcessLookupError:  # it has died already
        os.kill(os.getpid(), signal.SIGKILL)

    def wait() -> None:
        waiting.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="sparcom-parent", daemon=True).start()


@contextmanager
def children_end_on_cancel() -> Iterator[None]:
    """Kill the processes started in this context, and their children, if the task is cancelled."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except asyncio.CancelledError:
        for child in set(multiprocessing.active_children()) - before:
            _kill_tree(child.pid)
        raise


def _kill_tree(pid: int | None) -> None:
    import psutil  # a requirement of vLLM

    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def shield_children_from_interrupts() -> None:
    """Block SIGINT in this thread and in the processes it starts, until they have left the process group.
    Otherwise Ctrl-C prints the traceback of a process that is still importing. The resource tracker must start first:
    it unblocks the signal in the thread."""
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
