"""The pages in a real browser, if one is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.schema.metadata import MoeInfo

Start = Callable[..., Any]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


def dom(url: str, profile: Path) -> str:
    """Return the page after its scripts have run."""
    command = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={profile}", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_shows_models_jobs_and_archives(start: Start, tmp_path: Path) -> None:
    """User text is shown as text, never as markup; failures, numbers and snippets are present."""
    running = start(FakeEngine("<i>odd</i>", max_prompt_tokens=3, warnings=["BOS twice: <s>"]))
    batch = [{"id": "<img src=x>", "text": "a b c d"}, {"id": "ok", "text": "a"}]
    job = running.post(instructions=batch, archive="shown", dataset={"name": "<script>x</script>"}).json()
    running.wait(job["id"])
    page = dom(running.url, tmp_path / "profile")
    assert "&lt;i&gt;odd&lt;/i&gt;" in page
    assert "<i>odd" not in page
    assert "data set &lt;script&gt;x&lt;/script&gt;" in page
    assert "Warning: BOS twice: &lt;s&gt;" in page
    assert "&lt;img src=x&gt;: the prompt may have 3 tokens" in page
    assert page.count("1 of 2 instructions complete, 1 failed") == 2, "in the job and in its archive"
    assert page.count(">incomplete</span>") == 2
    assert 'max="2" value="1"' in page.replace('value="1" max="2"', 'max="2" value="1"')
    assert f'zarr.open("{job["links"]["zarr"]}", mode="r")' in page
    assert f"sparcom analyze {job['links']['zarr']} --output shown-report" in page


def test_the_page_shows_the_layers_of_an_moe_model(start: Start, tmp_path: Path) -> None:
    """An MoE model shows dense layers, then experts, experts per token and widths; a dense model shows only layers."""
    moe = MoeInfo(layer_ids=[1, 2], experts=60, experts_per_token=4, neurons=1408, shared_neurons=5632)
    running = start(FakeEngine("mixed", moe=moe), FakeEngine("dense"))
    assert "loaded when a job needs it" in dom(running.url, tmp_path / "profile")
    running.wait(running.post(model="dense").json()["id"])
    page = dom(running.url, tmp_path / "profile")
    experts = "2 layers of 60 experts of 1,408 neurons, 4 for each token, and 5,632 shared neurons"
    assert f"3 layers of 20 neurons; {experts}; float32" in page
    assert "3 layers of 20 neurons; float32" in page


def test_the_page_shows_a_job_of_two_models(start: Start, tmp_path: Path) -> None:
    """Both parts are named with their states, both archives are listed, and results can be downloaded."""
    running = start(FakeEngine("base"), FakeEngine("tuned"))
    job = running.post(model="base", tuned="tuned", archive="two").json()
    running.wait(job["id"])
    page = dom(running.url, tmp_path / "profile")
    assert "base: complete, tuned: complete" in page
    assert all(f"<h3>{name}</h3>" in page for name in ("two", "two-tuned"))
    assert f'href="v1/extractions/{job["id"]}/results"' in page


def test_the_page_asks_for_a_key(start: Start, tmp_path: Path) -> None:
    """A server with keys shows nothing but the question for one."""
    running = start()
    running.post(archive="private")
    assert running.http.post("/v1/keys", json={"name": "ann"}).status_code == 201
    page = dom(running.url, tmp_path / "profile")
    assert '<form id="key-form" class="card">' in page
    assert '<div id="content" hidden="">' in page
    assert "private" not in page


def test_the_reference_is_drawn(start: Start, tmp_path: Path) -> None:
    """/docs lists every route and type of openapi.json."""
    running = start()
    page = dom(f"{running.url}/docs", tmp_path / "profile")
    api = running.http.get("/openapi.json").json()
    for name in [*api["paths"], *api["components"]["schemas"]]:
        assert name in page, name
