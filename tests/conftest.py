"""`--strict-skips`: in CI a skipped test fails, unless CI cannot provide its requirement."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import suppress

import pytest

with suppress(ImportError):  # a GPU machine may have pytest alone
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
    settings.load_profile("untimed")

# A CUDA device, and the natural instructions, which the project does not distribute.
ALLOWED = re.compile(r"needs a CUDA device|SPARCOM_NATURAL")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="Fail skipped tests, except for a missing CUDA device or missing natural files.",
    )


def _fail_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a disallowed skip into a failure. Expected failures, which pytest counts as skips, stay."""
    if not config.getoption("--strict-skips") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not ALLOWED.search(reason):
        report.outcome = "failed"
        report.longrepr = f"--strict-skips allows no skip for this reason: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skip(collector.config, report)
    return report
