"""Prometheus metrics in a registry per app, so that two apps in one process do not mix.

Counters grow by the difference between two snapshots of a job's progress; gauges are computed at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sparcom_data.progress import Progress
from sparcom_server.schemas.reports import ModelState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("complete", "failed", "cancelled")


class Metrics(Collector):
    """Counts the service's work. `observe` is the queue's observer; `watch` adds the gauges once the queue exists."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instructions = Counter(
            "sparcom_instructions", "Instructions by outcome.", ["outcome"], registry=self.registry
        )
        self._tokens = Counter("sparcom_tokens", "Rows of complete instructions on disk.", registry=self.registry)
        self._waited = Counter(
            "sparcom_storage_wait_seconds", "Seconds that engines waited for storage.", registry=self.registry
        )
        for outcome in OUTCOMES:
            self._instructions.labels(outcome)

    def observe(self, before: Progress, after: Progress) -> None:
        """Count the difference between two snapshots of one job."""
        for outcome in OUTCOMES:
            self._instructions.labels(outcome).inc(max(0, getattr(after, outcome) - getattr(before, outcome)))
        self._tokens.inc(max(0, after.tokens_done - before.tokens_done))
        self._waited.inc(max(0.0, after.storage_wait_seconds - before.storage_wait_seconds))

    def job_started(self, seconds: float) -> None:
        """Count a job that waited so long."""

    def job_ended(self, state: str, seconds: float) -> None:
        """Count a job that ended so long after its start."""

    def engine_restarted(self, model: str) -> None:
        """Count a restart."""

    def watch(self, models: Callable[[], dict[str, ModelState]]) -> None:
        """Add the gauges: ready models."""
        self._models = models
        self.registry.register(self)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        ready = GaugeMetricFamily("sparcom_model_ready", "1 if the model can run, else 0.", labels=["model"])
        for name, model_state in self._models().items():
            ready.add_metric([name], int(model_state == "ready"))
        yield ready
