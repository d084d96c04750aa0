"""One job over a base and a tuned model, with vLLM: two aligned archives, each of its own model, and their analysis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.archive import open_archive
from sparcom_hexainst.build.synthetic import synthetic_instructions

MODEL = Path(__file__).parents[3] / "models" / "smollm2-135m-instruct"


def sparcom(*arguments: object) -> str:
    """Run a command; return what it printed."""
    command = [sys.executable, "-m", "sparcom_cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.engine
@pytest.mark.slow
def test_a_base_and_a_tuned_model_give_a_pair(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Transformers gives the masks of both archives, each with its own model; `sparcom analyze --tuned` takes them."""
    from sparcom_models import make_tiny_model

    models = {name: tmp_path / name for name in ("base", "tuned")}
    for seed, folder in enumerate(models.values()):
        make_tiny_model("llama", folder, seed=seed, tokenizer=MODEL)
    running = serve(models)
    batch = [item.model_dump(exclude_defaults=True) for item in synthetic_instructions(4)]
    body = {"model": "base", "tuned": "tuned", "archive": "pair", "analysis": True, "instructions": batch}
    job = running.http.post("/v1/extractions", json=body).raise_for_status().json()
    running.wait_for(lambda: running.http.get(job["links"]["self"]).json()["finished"], 240)
    job = running.http.get(job["links"]["self"]).json()
    assert (job["state"], job["error"], job["progress"]["complete"]) == ("complete", None, 2 * len(batch))
    paths = [Path(part["path"]) for part in job["archives"]]
    base, tuned = map(open_archive, paths)
    assert base.instructions.id == tuned.instructions.id == [item["id"] for item in batch]
    for one, other in zip(base.read_tokens(0, base.tokens), tuned.read_tokens(0, tuned.tokens), strict=True):
        np.testing.assert_array_equal(one, other)
    for path, folder in zip(paths, models.values(), strict=True):
        assert str(folder) in open_archive(path).attributes.model.id
        sparcom("verify", path, "--reference", "transformers", "--sample", len(batch))
    sparcom("analyze", paths[0], "--tuned", paths[1], "--output", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()
    assert running.http.get(job["links"]["analysis"]).headers["Content-Type"].startswith("text/html")
