"""Logs are JSON objects, one per line, of this process and of vLLM's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

CONFIGURE = "from sparcom_server.observe.logs import *\nimport logging\nconfigure_logs({!r})\n"


def log(log_format: str, code: str, **environment: str) -> list[str]:
    """Return the lines that a new process logs."""
    program = CONFIGURE.format(log_format) + code
    ran = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    return ran.stderr.splitlines()


def logged(code: str, **environment: str) -> list[dict[str, Any]]:
    """Return the objects that a new process logs as JSON."""
    return [json.loads(line) for line in log("json", code, **environment)]


def test_a_record_is_one_line_with_the_ids_of_its_context() -> None:
    """Ids belong to their context and its threads only; a traceback is one field; line breaks are escaped."""
    code = """
import asyncio
log = logging.getLogger("here")
async def main():
    with log_ids(LogIds(request_id="r1")) as ids:
        log.info("one\\ntwo %d", 3, extra={"bytes": 5})
        ids.key_id = "k1"
        await asyncio.to_thread(log.warning, "in a thread")
        with log_ids(LogIds(job_id="j1")):
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception("failed")
    log.debug("not shown")
    log.info("outside")
asyncio.run(main())
"""
    lines = logged(code)
    times = [line.pop("time") for line in lines]
    assert times == sorted(times)
    assert times[0].endswith("+00:00")
    traceback = lines[2].pop("exc_info")
    assert traceback.startswith("Traceback")
    assert traceback.endswith("ZeroDivisionError: division by zero")
    assert lines == [
        {"level": "INFO", "logger": "here", "message": "one\ntwo 3", "bytes": 5, "request_id": "r1"},
        {"level": "WARNING", "logger": "here", "message": "in a thread", "request_id": "r1", "key_id": "k1"},
        {"level": "ERROR", "logger": "here", "message": "failed", "job_id": "j1"},
        {"level": "INFO", "logger": "here", "message": "outside"},
    ]


def test_warnings_are_logged() -> None:
    """Python's warnings are records too."""
    (line,) = logged("import warnings\nwarnings.warn('old')")
    assert line["logger"] == "py.warnings"
    assert "old" in line["message"]


def test_an_operators_configuration_of_vllm_stays() -> None:
    """VLLM_LOGGING_CONFIG_PATH is not overwritten."""
    code = "import os\nlogging.info(os.environ['VLLM_LOGGING_CONFIG_PATH'])"
    assert logged(code, VLLM_LOGGING_CONFIG_PATH="mine.json")[0]["message"] == "mine.json"


def test_text_has_the_ids_too() -> None:
    """The ids follow the message in parentheses."""
    code = "logging.info('one')\nwith log_ids(LogIds(request_id='r1', job_id='j1')):\n    logging.info('two')"
    first, second = log("text", code)
    assert first.endswith(" INFO root: one")
    assert second.endswith(" INFO root: two (request_id r1, job_id j1)")
