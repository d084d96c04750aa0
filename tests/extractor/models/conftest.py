"""Fixtures for tests that fine-tune models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparcom_models import folder, make_tiny_model
from sparcom_models.testing import write_small_tokenizer

QUICK = {
    "epochs": 2.0,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "precision": "float32",
    "max_length": 24,
    "held_out": 0.1,
}


def write_data(path: Path, count: int = 30) -> None:
    """Write instructions of 4 to 33 letters, each a part of one alphabet, so that the next letter can be learned."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYabcdefghijklmnopqrstuvwxy"
    lines = []
    for number in range(count):
        text = " ".join((letters * 2)[number : number + 4 + number % 30])
        lines.append(json.dumps({"id": f"i{number}", "text": text, "license": "CC0-1.0" if number else ""}))
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny bases by architecture, and data.jsonl."""
    place = tmp_path_factory.mktemp("tune")
    vocabulary = write_small_tokenizer(place)
    for architecture in ("llama", "qwen2-moe"):
        make_tiny_model(architecture, place / architecture, tokenizer=vocabulary)
    write_data(place / "data.jsonl")
    return place


@pytest.fixture(scope="module")
def tune(place: Path) -> Callable[..., folder.MadeModel]:
    """Return `tune(output, base, **settings)`, which fine-tunes a base quickly; it also takes data and on_progress."""

    from sparcom_models.tune.settings import TuneSettings
    from sparcom_models.tune.tune import tune_model

    def run(output: Path, base: str | Path = "llama", **settings: Any) -> folder.MadeModel:
        data = settings.pop("data", place / "data.jsonl")
        on_progress = settings.pop("on_progress", folder.no_progress)
        return tune_model(
            place / base, data, output, settings=TuneSettings(**(QUICK | settings)), on_progress=on_progress
        )

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch on one thread: spinning threads took 13 s instead of 1 s beside another busy process."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
