"""Capturing worker for vLLM's CPU platform. The writer's threads run on cores that the engine leaves free, if any."""

from __future__ import annotations

import os
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from sparcom_extractor.launch.bootstrap import SubprocessBootstrap
from sparcom_extractor.worker.cores import free_cores, started_on, thread_cores
from sparcom_extractor.worker.mixin import CaptureMixin


class CaptureCPUWorker(CaptureMixin, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, with capture."""

    def sparcom_open(self, session: str, path: str, run: str | None = None) -> Any:
        """Open an archive; see `CaptureMixin`. Its threads inherit the cores of the thread that starts them."""
        bootstrap = self.vllm_config.additional_config
        if not isinstance(bootstrap, SubprocessBootstrap):
            return super().sparcom_open(session, path, run)
        with started_on(free_cores(os.sched_getaffinity(bootstrap.parent), thread_cores())):
            return super().sparcom_open(session, path, run)
