"""Metrics count jobs, steps and restarts; gauges show the service at the scrape; vLLM's own are passed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from sparcom_data.progress import Progress
from sparcom_server.observe.metrics import Metrics, Snapshot


def samples(metrics: Metrics, now: Snapshot = Snapshot()) -> dict[str, float]:  # noqa: B008  (frozen)
    """Return the exposition as {name{label="value",…}: value}; it must be valid."""
    found = {}
    for family in text_string_to_metric_families(metrics.exposition(now).decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


def test_steps_are_counted_by_their_difference() -> None:
    """Counters grow by what a step adds; a restart's smaller numbers subtract nothing."""
    metrics = Metrics()
    first = Progress(instructions=9, complete=2, failed=1, tokens_done=20, storage_wait_seconds=0.5, written_bytes=7)
    metrics.observe(Progress(), first)
    metrics.observe(first, replace(first, complete=5, tokens_done=50))
    metrics.observe(first, Progress())
    found = samples(metrics)
    assert found['sparcom_instructions_total{outcome="complete"}'] == 5
    assert found['sparcom_instructions_total{outcome="failed"}'] == 1
    assert found['sparcom_instructions_total{outcome="cancelled"}'] == 0
    assert (found["sparcom_tokens_total"], found["sparcom_storage_wait_seconds_total"]) == (50, 0.5)
    assert found["sparcom_written_bytes_total"] == 7


def test_jobs_and_restarts_are_counted() -> None:
    """Wait and duration are histograms; each outcome of a job exists from the start, as 0."""
    metrics = Metrics()
    metrics.job_started(3)
    metrics.job_ended("complete", 70)
    metrics.engine_restarted("m")
    found = samples(metrics)
    assert (found["sparcom_job_wait_seconds_count"], found["sparcom_job_wait_seconds_sum"]) == (1, 3)
    assert found['sparcom_job_duration_seconds_bucket{le="60.0",state="complete"}'] == 0
    assert found['sparcom_job_duration_seconds_bucket{le="300.0",state="complete"}'] == 1
    assert found['sparcom_jobs_ended_total{state="failed"}'] == 0
    assert found['sparcom_engine_restarts_total{model="m"}'] == 1


def test_gauges_show_the_scrape() -> None:
    """Each scrape shows the state of the service; the process is measured too."""
    metrics = Metrics()
    now = Snapshot(jobs={"queued": 2, "running": 1}, in_flight=5, models={"a": "ready", "b": "unloaded"})
    found = samples(metrics, now)
    assert (found['sparcom_jobs{state="queued"}'], found['sparcom_jobs{state="failed"}']) == (2, 0)
    assert (found["sparcom_queue_length"], found["sparcom_instructions_in_flight"]) == (2, 5)
    assert (found['sparcom_model_ready{model="a"}'], found['sparcom_model_ready{model="b"}']) == (1, 0)
    assert "sparcom_disk_free_bytes" not in found
    assert found["process_resident_memory_bytes"] > 0
    found = samples(metrics, replace(now, jobs={}, disk_free=9, tokens_per_second=3.5, connections=4))
    assert (found["sparcom_queue_length"], found["sparcom_disk_free_bytes"]) == (0, 9)
    assert (found["sparcom_tokens_per_second"], found["sparcom_connections"]) == (3.5, 4)


@pytest.fixture
def engine_counter() -> Iterator[Counter]:
    """Return a counter in the default registry, as vLLM makes them."""
    from prometheus_client import REGISTRY

    counter = Counter("vllm:tokens", "Tokens.", ["model_name"])
    yield counter
    REGISTRY.unregister(counter)


def test_vllms_metrics_are_passed_on(engine_counter: Counter) -> None:
    """They appear beside ours, and nothing else of the default registry does; two apps may show them."""
    engine_counter.labels("m").inc(3)
    for metrics in (Metrics(), Metrics()):
        found = samples(metrics)
        assert found['vllm:tokens_total{model_name="m"}'] == 3
        assert not any(name.startswith("python_gc") for name in found)
