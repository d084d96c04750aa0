"""Prometheus metrics in a registry per app, so that two apps in one process do not mix.

Counters grow by the difference between two snapshots of a job's progress; gauges are computed at each scrape. vLLM
counts into Prometheus' default registry; `EngineMetrics` passes these metrics on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import get_args

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sparcom_data.progress import Progress
from sparcom_server.schemas.reports import JobState, ModelState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("complete", "failed", "cancelled")
ENDS: tuple[JobState, ...] = ("complete", "failed", "cancelled")
METHODS = frozenset(HTTPMethod)
OTHER_METHOD = "OTHER"  # a client may invent methods; each would become a time series
LONG = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)  # seconds that jobs wait and run
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds until a response
ENGINE_PREFIX = "vllm:"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the service at a scrape.

    jobs: number of jobs by state. in_flight: instructions of unfinished jobs that are not in a final state.
    tokens_per_second: of the running job, 0 without one. disk_free: bytes, None if unknown.
    """

    jobs: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    tokens_per_second: float = 0.0
    models: Mapping[str, ModelState] = field(default_factory=dict)
    disk_free: int | None = None
    connections: int = 0


class Metrics(Collector):
    """Counts the service's work. The runner calls `observe` and the `job_` methods."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._now = Snapshot()
        self._instructions = self._counter("instructions", "Instructions by outcome.", "outcome")
        self._tokens = self._counter("tokens", "Rows of complete instructions on disk.")
        self._waited = self._counter("storage_wait_seconds", "Seconds that engines waited for storage.")
        self._written = self._counter("written_bytes", "Bytes of masks and counts that were written to archives.")
        self._restarts = self._counter("engine_restarts", "Restarts of an engine that died.", "model")
        self._jobs_ended = self._counter("jobs_ended", "Jobs that ended, by state.", "state")
        self._job_wait = self._histogram("job_wait_seconds", "Time from submission to start of a job.", LONG)
        self._job_duration = self._histogram("job_duration_seconds", "Time from start to end of a job.", LONG, "state")
        self._latency = self._histogram(
            "http_request_seconds", "Time until a response begins.", SHORT, "method", "route", "status"
        )
        self.event_streams = Gauge("sparcom_event_streams", "Open event streams.", registry=self.registry)
        for outcome in OUTCOMES:
            self._instructions.labels(outcome)
        for state in ENDS:
            self._jobs_ended.labels(state)
        self.registry.register(self)
        self.registry.register(EngineMetrics())

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sparcom_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"sparcom_{name}", text, labels, buckets=buckets, registry=self.registry)

    def observe(self, before: Progress, after: Progress) -> None:
        """Count the difference between two snapshots of one job."""
        for outcome in OUTCOMES:
            self._instructions.labels(outcome).inc(max(0, getattr(after, outcome) - getattr(before, outcome)))
        self._tokens.inc(max(0, after.tokens_done - before.tokens_done))
        self._written.inc(max(0, after.written_bytes - before.written_bytes))
        self._waited.inc(max(0.0, after.storage_wait_seconds - before.storage_wait_seconds))

    def job_started(self, seconds: float) -> None:
        """Record the time from submission to start."""
        self._job_wait.observe(max(0.0, seconds))

    def job_ended(self, state: str, seconds: float) -> None:
        """Record the time from start to end, and the state."""
        self._jobs_ended.labels(state).inc()
        self._job_duration.labels(state).observe(max(0.0, seconds))

    def engine_restarted(self, model: str) -> None:
        """Count the restart of an engine that died."""
        self._restarts.labels(model).inc()

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record one request. route: its template, so that ids and names of a path make no time series."""
        method = method if method in METHODS else OTHER_METHOD
        self._latency.labels(method, route, str(status)).observe(seconds)

    def exposition(self, now: Snapshot) -> bytes:
        """Return all metrics in Prometheus' text format, with the gauges of `now`."""
        self._now = now
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        now = self._now
        by_state = GaugeMetricFamily("sparcom_jobs", "Remembered jobs by state.", labels=["state"])
        for state in get_args(JobState):
            by_state.add_metric([state], now.jobs.get(state, 0))
        yield by_state
        yield GaugeMetricFamily("sparcom_queue_length", "Jobs that wait.", value=now.jobs.get("queued", 0))
        yield GaugeMetricFamily(
            "sparcom_instructions_in_flight", "Instructions queued or running.", value=now.in_flight
        )
        yield GaugeMetricFamily("sparcom_tokens_per_second", "Speed of the running job.", value=now.tokens_per_second)
        yield GaugeMetricFamily("sparcom_connections", "Open connections.", value=now.connections)
        if now.disk_free is not None:
            yield GaugeMetricFamily("sparcom_disk_free_bytes", "Free space for the data folder.", value=now.disk_free)
        ready = GaugeMetricFamily("sparcom_model_ready", "1 if the model can run, else 0.", labels=["model"])
        for name, model_state in now.models.items():
            ready.add_metric([name], int(model_state == "ready"))
        yield ready


class EngineMetrics(Collector):
    """vLLM's own metrics. They are those of the engine that started last: vLLM removes its predecessor's."""

    def describe(self) -> list[Metric]:
        """Return nothing: the names are known only once an engine runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield vLLM's metrics from the default registry."""
        yield from (metric for metric in REGISTRY.collect() if metric.name.startswith(ENGINE_PREFIX))
