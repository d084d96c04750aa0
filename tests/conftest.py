"""`--strict-skips`: in CI a skipped test is a failed one, unless what it needs cannot be had there."""

from __future__ import annotations

import re
from collections.abc import Generator

import pytest

# A CUDA device, and the natural instructions, which are not distributed with the project.
ALLOWED = re.compile(r"needs a CUDA device|SPARCOM_NATURAL")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="Fail tests that are skipped for another reason than a missing CUDA device or missing natural files.",
    )


def _fail_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that is not allowed into a failure; an expected failure counts as a skip for pytest and stays."""
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
