"""Run by tests: a server of one fake engine in a process of its own. Its one argument is JSON; see `main`."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine, FakeExtraction, FakeSource
from sparcom_data.errors import EngineError, SparcomError
from sparcom_server.observe.logs import LogFormat, configure_logs
from sparcom_server.run import run_server
from sparcom_server.settings import ServerSettings


class Never(asyncio.Event):
    """An event that cannot be set."""

    def set(self) -> None:
        """Do nothing."""


class Deaf(FakeEngine):
    """Its jobs notice no request to stop."""

    def prepare(self, *arguments: Any, **options: Any) -> FakeExtraction:
        """Return an extraction that runs to its end."""
        extraction = super().prepare(*arguments, **options)
        extraction._cancelled = Never()
        return extraction


def main(
    data_dir: str,
    descriptors: int = 0,
    stuck: bool = False,
    deaf: bool = False,
    pause: float = 0.0,
    log_format: LogFormat = "text",
    **settings: Any,
) -> None:
    """Serve one fake engine.

    Args:
        data_dir: folder of the data.
        descriptors: hard and soft limit of open files; 0 to keep the current limits.
        stuck: whether the engine's start, in a thread, never ends.
        deaf: whether jobs run on when they should stop.
        pause: pause of the engine before each instruction, in seconds.
        log_format: format of the log.
        settings: fields of `ServerSettings`.
    """
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    engine = (Deaf if deaf else FakeEngine)(pause=pause, max_prompt_tokens=10_000)

    def die(*_: object) -> None:
        engine.error, engine.healthy = EngineError("the engine was killed"), False

    signal.signal(signal.SIGUSR1, die)
    configure_logs(log_format)
    try:
        run_server({"fake": FakeSource(engine, stuck=stuck)}, ServerSettings(data_dir=Path(data_dir), **settings))
    except SparcomError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
