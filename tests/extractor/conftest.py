"""Engines for the tests: each starts once per session and is shared, on an event loop in a thread.

An engine belongs to the loop that started it. Tests are plain functions and run coroutines on that loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.archive import Archive, open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema.options import ExtractionOptions
from sparcom_hexainst.build.synthetic import synthetic_instructions

MAX_ENGINES = 4  # a tiny one takes about 1.7 GiB and starts in 15 to 25 s
DEMO_MODEL = Path("models/smollm2-135m-instruct")
TRITON_VERSIONS = ("3.6.0", "3.8.0")  # of vLLM 0.24 and 0.33, fetched by `.ci/aot`


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=300)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Engine:
    """A running engine, driven from tests."""

    def __init__(self, loop: Loop, engine: Any) -> None:
        self.loop = loop
        self.engine = engine

    def prepare(self, instructions: Sequence[Instruction], path: Path, **options: Any) -> Any:
        return self.engine.prepare(instructions, ExtractionOptions(**options), path)

    def run(self, extraction: Any, report: Callable[[Progress], None] = lambda _: None) -> Progress:
        progress = self.loop.run(extraction.run(report))
        assert isinstance(progress, Progress)
        return progress

    def extract(self, instructions: Sequence[Instruction], path: Path, **options: Any) -> Archive:
        """Prepare and run; every instruction must become complete."""
        progress = self.run(self.prepare(instructions, path, **options))
        assert progress.complete == len(instructions), progress
        return open_archive(path)

    def extract_alone(self, instructions: Sequence[Instruction], path: Path, **options: Any) -> Archive:
        """Extract like `extract`, with one request in the engine at a time."""
        in_flight, self.engine.max_in_flight = self.engine.max_in_flight, 1
        try:
            return self.extract(instructions, path, **options)
        finally:
            self.engine.max_in_flight = in_flight


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(
    scope="session", params=["installed", *(pytest.param(name, marks=pytest.mark.aot) for name in TRITON_VERSIONS)]
)
def triton_environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return environment variables of a process that imports one version of Triton."""
    if request.param == "installed":
        return dict(os.environ)
    folder = Path(f".cache/triton/{request.param}-{sys.implementation.cache_tag}").absolute()
    if not folder.is_dir():
        pytest.skip(f"Triton {request.param} is not on disk: `.ci/aot` fetches it")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="session")
def demo_model() -> Path:
    if not (DEMO_MODEL / "config.json").exists():
        pytest.skip("the demo model is not on disk: `make test` fetches it")
    return DEMO_MODEL


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Callable[[str], Path]:
    """Return a function that returns the folder of a tiny random model of an architecture, made once."""
    from sparcom_models import make_tiny_model

    root = tmp_path_factory.mktemp("models")

    def make(architecture: str) -> Path:
        path = root / architecture
        if not path.exists():
            make_tiny_model(architecture, path, tokenizer=demo_model)
        return path

    return make


@pytest.fixture(scope="session")
def start_engine(loop: Loop) -> Iterator[Callable[..., Engine]]:
    """Return a function that starts an engine; equal settings return the same engine. Idle engines only take memory."""
    from sparcom_extractor.engine import CaptureEngine
    from sparcom_extractor.settings import EngineSettings

    running: dict[Any, Engine] = {}

    def start(model: Path, **settings: Any) -> Engine:
        key = EngineSettings(model=str(model), **({"kv_cache_gib": 0.25} | settings))
        if key not in running:
            while len(running) >= MAX_ENGINES:
                loop.run(running.pop(next(iter(running))).engine.close())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # importing vLLM and torch's compiler raises warnings
                running[key] = Engine(loop, loop.run(CaptureEngine.start(key)))
        running[key] = running.pop(key)  # most recently used last
        return running[key]

    yield start
    for engine in running.values():
        loop.run(engine.engine.close())


@pytest.fixture
def tiny_engine(start_engine: Callable[..., Engine], tiny_model: Callable[[str], Path]) -> Engine:
    """Start a tiny LLaMA with 64 tokens per step and 8 requests at once, so that prompts are split and batches
    mixed."""
    return start_engine(tiny_model("llama"), max_num_batched_tokens=64, max_num_seqs=8, max_model_len=320)


@pytest.fixture(scope="session")
def demo_instructions() -> list[Instruction]:
    return synthetic_instructions(20)


@pytest.fixture(scope="session")
def mixed_instructions(demo_instructions: list[Instruction]) -> list[Instruction]:
    """Return 24 instructions, alternately short and long: from one word to several steps of tokens."""
    texts = [item.text or "" for item in demo_instructions]
    made = []
    for number in range(24):
        text = texts[number * 5] if number % 3 else " ".join(texts[number : number + 3])
        made.append(Instruction(id=f"m{number:02d}", text=text[:900] if number % 4 else text.split()[0]))
    return [replace_text(item, number) for number, item in enumerate(made)]


def replace_text(item: Instruction, number: int) -> Instruction:
    """Make all prompts different, so that a row in another request is detected."""
    return item.model_copy(update={"text": f"{number} {item.text}"})
