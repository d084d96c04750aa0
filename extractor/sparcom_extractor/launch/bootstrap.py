"""What the engine's processes are told as they start, inside vLLM's own configuration (`additional_config`).

That they capture: it is part of the key of vLLM's compilation cache, so that a graph compiled without
capture is never taken for one with it. And that a terminal's Ctrl-C is not for them: it goes to every process of a
group, and vLLM's end on it at once, in the middle of a step. On arrival they leave the group; the parent hears Ctrl-C
alone, settles what runs, and then ends them. If it dies instead (killed, out of memory), the engine's core ends itself
and its workers: vLLM's would wait for ever, and keep the memory.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

PARENT_CHECK_SECONDS = 1.0
OP_VERSION = 3  # changes with the op's schema or meaning: cached graphs call it by name


@dataclass(frozen=True, slots=True)
class EngineNote:
    """The note. It acts where it is unpickled in another process than the one that wrote it."""

    capture: bool
    writer: int  # process id
    product: str = ""  # who makes the activation's product; the worker says so before anything is compiled
    report: str = ""  # file for the reason why the model did not load

    def compute_hash(self) -> str:
        """vLLM's part of its compilation cache key."""
        return f"sparcom-op-{OP_VERSION}-capture-{int(self.capture)}-{self.product}"

    def __reduce__(self) -> tuple[Callable[[bool, int, str, str], EngineNote], tuple[bool, int, str, str]]:
        return _arrive, (self.capture, self.writer, self.product, self.report)


@contextmanager
def children_end_on_cancel() -> Iterator[None]:
    """Kill the processes that were started within, with theirs, where the task within is cancelled."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except asyncio.CancelledError:
        for child in set(multiprocessing.active_children()) - before:
            _kill_tree(child)
        raise


def shield_children_from_interrupts() -> None:
    """Block SIGINT in this thread and in the processes that it starts, until they have left the group of processes.

    Without it, Ctrl-C gives a traceback of a process that is still importing. The tracker is started first: that
    unblocks the signal in the thread.
    """
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _kill_tree(child: BaseProcess) -> None:
    import psutil  # vLLM's own requirement

    try:
        below = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    child.kill()
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _arrive(capture: bool, writer: int, product: str, report: str) -> EngineNote:
    if os.getpid() != writer:
        let_vllm_scan_llvmlite(sys.modules)
        os.setpgid(0, 0)
        atexit.register(_leave_quickly)
        if os.getppid() == writer:
            threading.Thread(target=_end_with, args=(writer,), name="sparcom-parent", daemon=True).start()
    return EngineNote(capture, writer, product, report)


def let_vllm_scan_llvmlite(modules: Mapping[str, Any]) -> None:
    """Give llvmlite's lazy library an empty `__dict__`, where llvmlite is loaded.

    At start a CPU worker of vLLM reads `vars(value).get("kernel")` of every attribute of every module. The library
    answers every name with a function of the shared object, `__dict__` too, and the worker died of that in a program
    that had imported Numba. Its table of functions is asked first, so the entry goes there.
    """
    ffi = modules.get("llvmlite.binding.ffi")
    table = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(table, dict):
        table["__dict__"] = {}


def _leave_quickly() -> None:
    """Leave the interpreter's last collection nothing to look at.

    Among all that vLLM and torch ever made it takes seconds, after which vLLM kills the process that it waits for.
    Triton's library then lists what was never freed, which nobody is to hear of.
    """
    gc.freeze()
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
