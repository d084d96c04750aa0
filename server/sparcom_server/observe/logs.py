"""Logs as text or as JSON, one object per line, with the ids of the request, the job and the key.

    time, level, logger, message   always; time is UTC
    request_id, key_id             within a request
    job_id                         within a job, or a request for one
    exc_info                       the traceback, once, where an error was not expected

`logging.json` configures this process, and through VLLM_LOGGING_CONFIG_PATH also vLLM and its processes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging.config import dictConfig
from pathlib import Path
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter as BaseFormatter

LogFormat = Literal["text", "json"]
CONFIGURATION = Path(__file__).with_name("logging.json")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s"
RENAMED = {"levelname": "level", "name": "logger"}


@dataclass(slots=True)
class LogIds:
    """Ids that every record of one request or job carries. Empty ones are left out."""

    request_id: str = ""
    job_id: str = ""
    key_id: str = ""


_IDS: ContextVar[LogIds | None] = ContextVar("sparcom_log_ids", default=None)


@contextmanager
def log_ids(ids: LogIds) -> Iterator[LogIds]:
    """Give the records of this context, and of the threads it starts, these ids. They may change until its end."""
    token = _IDS.set(ids)
    try:
        yield ids
    finally:
        _IDS.reset(token)


def current_ids() -> LogIds:
    """Return the ids of this context; change them to add one."""
    return _IDS.get() or LogIds()


class JsonFormatter(BaseFormatter):
    """Formats a record, its `extra` fields and the current ids as one JSON object."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields=RENAMED, timestamp="time")

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add the ids."""
        super().add_fields(log_data, record, message_dict)
        ids = current_ids()
        log_data |= {name: value for name in LogIds.__slots__ if (value := getattr(ids, name))}


def _add_ids(record: logging.LogRecord) -> bool:
    """Give a record of a text log the field `ids`."""
    ids = current_ids()
    shown = ", ".join(f"{name} {value}" for name in LogIds.__slots__ if (value := getattr(ids, name)))
    record.ids = f" ({shown})" if shown else ""
    return True


def configure_logs(log_format: LogFormat) -> None:
    """Send all records from INFO on to standard error. Call it before vLLM is imported.

    VLLM_LOGGING_CONFIG_PATH stays as it is if the operator has set it.
    """
    logging.captureWarnings(capture=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs every import and every start
    if log_format == "text":
        handler = logging.StreamHandler()
        handler.addFilter(_add_ids)
        logging.basicConfig(level=logging.INFO, format=TEXT, handlers=[handler])
        return
    dictConfig(json.loads(CONFIGURATION.read_text()))
    os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIGURATION))
