"""`make bench-peers`: agreement, rounds and table with fakes; one run against transformers on a tiny model."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("peers", "peer_process")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(MODULES[0])


def test_differing_bits_are_counted_per_neuron(peers: Any) -> None:
    """The fraction is over tokens, layers and neurons; padding bits of the last byte do not enlarge the total."""
    ours = np.zeros((5, 2, 2), dtype=np.uint8)
    theirs = ours.copy()
    theirs[3, 1] = (0b101, 0b1)
    assert peers.differing_bits(ours, ours, 12) == 0
    assert peers.differing_bits(ours, theirs, 12) == 3 / (5 * 2 * 12)
    with pytest.raises(peers.PeerError, match=r"its signs have the shape \(4, 2, 2\); ours have \(5, 2, 2\)"):
        peers.differing_bits(ours, theirs[:4], 12)


def test_the_table_names_every_peer(peers: Any) -> None:
    """Ratios are medians of paired rounds; the last line is about the best peer; failures have their reason."""
    results = [
        peers.Result("transformers", 8, seconds=[3.0, 4.0, 2.0], ours=[2.0, 2.0, 2.0], differ=4e-7),
        peers.Result("nnsight", 1, seconds=[6.0, 6.0, 6.0], ours=[2.0, 2.0, 3.0], differ=1e-3),
        peers.Result("transformer-lens", 1, problem="pip could not install it: no network"),
    ]
    lines = list(peers.table(results, tokens=600))
    assert lines[0].split() == ["ours", "300", "tokens/s"]
    assert "200 tokens/s   ours / peer 1.500 (1.000 to 2.000)   0.40 in 10⁶ bits differ" in lines[1]
    assert lines[2].endswith("1000.00 in 10⁶ bits differ, TOO MANY")
    assert lines[3].endswith("not measured: pip could not install it: no network")
    assert lines[4] == "ours / best peer (transformers, sorted batches of 8), goal 1.3: 1.500 (1.000 to 2.000)"
    assert [result.disagrees for result in results] == [False, True, False]
    assert len(list(peers.table(results[2:], tokens=600))) == 1


def test_rounds_alternate_and_skip_the_warm_up(peers: Any) -> None:
    """Each run of a peer has its own run of ours beside it, in alternating order. A failing peer stays out."""
    calls: list[str] = []
    clock = iter(range(1, 100))

    async def ours() -> float:
        calls.append("ours")
        return next(clock)

    async def theirs(result: Any) -> float:
        calls.append(result.library)
        if result.library == "nnsight":
            raise peers.PeerError("its process ended")
        return next(clock)

    differences = iter([2e-7, 5e-7, 1e-7])
    results = [peers.Result("transformers", 1), peers.Result("nnsight", 1)]
    asyncio.run(peers.run_rounds(results, 2, ours, theirs, lambda: next(differences)))
    assert calls == ["transformers", "ours", "nnsight", "ours", "transformers", "transformers", "ours"]
    good, failed = results
    assert (good.seconds, good.ours, good.differ) == ([4, 5], [3, 6], 5e-7)
    assert (failed.problem, failed.seconds) == ("its process ended", [])


def test_a_failed_installation_is_the_reason(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's last line is in the error, and the environment is made again at the next run."""

    def create(home: Path, **_options: Any) -> None:
        (home / "bin").mkdir(parents=True, exist_ok=True)
        (home / "bin" / "python").write_text("#!/bin/sh\necho 'ERROR: nothing matches' >&2\nexit 1\n")
        (home / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(peers.venv, "create", create)
    for _ in range(2):
        with pytest.raises(peers.PeerError, match=r"pip could not install torch==.*: ERROR: nothing matches"):
            peers.environment("nnsight==0", tmp_path)


@pytest.mark.torch
def test_padding_is_removed_and_the_order_restored(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted, padded batches end in the same file as single prompts."""
    process = importlib.import_module(MODULES[1])
    widths: list[int] = []

    def peer(ids: Any, mask: Any) -> list[Any]:
        widths.append(ids.shape[1])
        signs = (ids * mask).numpy().astype(np.uint8)[..., None]
        return [signs, signs + 100]

    prompts = [[5, 6, 7], [1], [8, 9], [2, 3, 4, 10]]
    files = {batch: tmp_path / str(batch) for batch in (1, 3)}
    for batch, file in files.items():
        assert process.extract(peer, prompts, batch, file) > 0
    flat = [number for prompt in prompts for number in prompt]
    assert np.fromfile(files[1], dtype=np.uint8).reshape(-1, 2, 1)[:, :, 0].tolist() == [[n, n + 100] for n in flat]
    assert files[3].read_bytes() == files[1].read_bytes()
    assert widths == [3, 1, 2, 4, 3, 4]


@pytest.mark.engine
@pytest.mark.slow
def test_transformers_agrees_on_a_tiny_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The whole benchmark runs against transformers, one by one and in batches, and the bits agree."""
    command = [sys.executable, BENCHMARKS / "peers.py", "transformers", "--quick", "--rounds", "1"]
    run = subprocess.run(
        [*command, "--model", tiny_model("llama"), "--output", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "peers.json").read_text())
    assert [result["batch"] for result in found["results"]] == [1, 8]
    for result in found["results"]:
        assert result["problem"] == ""
        assert len(result["seconds"]) == len(result["ours"]) == 1
        assert result["differ"] < 3e-6
