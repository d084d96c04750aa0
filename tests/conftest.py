"""`--strict-skips`: in CI a skipped test fails, unless CI cannot provide its requirement.

`-m gpu` collects `tests/gpu` alone, and works without any plugin of pytest: a GPU machine may have pytest alone.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
    settings.load_profile("untimed")

# A CUDA device, and the natural instructions, which the project does not distribute.
ALLOWED = re.compile(r"needs a CUDA device|SPARCOM_NATURAL")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="Fail skipped tests, except for a missing CUDA device or missing natural files.",
    )
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "Ignored without pytest-timeout.")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout: ignored without pytest-timeout")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, skip tests that need no device: importing them needs packages that a GPU machine may lack."""
    tests = Path(__file__).parent
    kept = collection_path == tests or tests / "gpu" in (collection_path, *collection_path.parents)
    return None if kept or config.getoption("-m") != "gpu" else True


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
