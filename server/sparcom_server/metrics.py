"""Counts for Prometheus, in a registry of this app's own, so that two apps in one process do not mix.

Counters grow by the difference between two snapshots of a job's progress; gauges are read when they are scraped.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sparcom_data.progress import Progress
from sparcom_server.jobs.queue import Job
from sparcom_server.schemas import JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What the service counts. Use `observe` as the queue's observer, `watch` once the queue exists."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instructions = Counter(
            "sparcom_instructions", "Instructions by outcome.", ["outcome"], registry=self.registry
        )
        self._tokens = Counter("sparcom_tokens", "Rows on disk of complete instructions.", registry=self.registry)
        self._waited = Counter(
            "sparcom_storage_wait_seconds", "How long engines stood still for storage.", registry=self.registry
        )
        for outcome in ("complete", "failed", "cancelled"):
            self._instructions.labels(outcome)

    def observe(self, before: Progress, after: Progress) -> None:
        """Count what happened between two snapshots of one job."""
        for outcome in ("complete", "failed", "cancelled"):
            self._instructions.labels(outcome).inc(max(0, getattr(after, outcome) - getattr(before, outcome)))
        self._tokens.inc(max(0, after.tokens_done - before.tokens_done))
        self._waited.inc(max(0.0, after.storage_wait_seconds - before.storage_wait_seconds))

    def watch(self, jobs: Callable[[], list[Job]], models: Callable[[], dict[str, bool]]) -> None:
        """Add the gauges: jobs by state, instructions that wait or run, models that are ready."""
        self.registry.register(_Gauges(jobs, models))

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, jobs: Callable[[], list[Job]], models: Callable[[], dict[str, bool]]) -> None:
        self._jobs = jobs
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = self._jobs()
        states = Tally(job.state for job in jobs)
        by_state = GaugeMetricFamily("sparcom_jobs", "Remembered jobs by state.", labels=["state"])
        for state in get_args(JobState):
            by_state.add_metric([state], states[state])
        yield by_state
        open_jobs = [job.progress for job in jobs if not job.ended.is_set()]
        waiting = sum(progress.instructions - progress.settled for progress in open_jobs)
        yield GaugeMetricFamily("sparcom_instructions_in_flight", "Instructions that wait or run.", value=waiting)
        ready = GaugeMetricFamily("sparcom_model_ready", "1 where the model can run.", labels=["model"])
        for name, value in self._models().items():
            ready.add_metric([name], int(value))
        yield ready
