"""Engines and archives for tests on a GPU: one tiny random model per variant; archives are made on first use.

SPARCOM_TEST_DEVICE=cpu runs on a CPU everything that does not need CUDA. SPARCOM_TEST_CACHE names a folder for compiled
code that a later run of the same checks reuses; by default nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparcom_data.archive import Archive, open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.verify import verify_archive
from sparcom_extractor.writer.counting import count_rows
from sparcom_verification import limits
from sparcom_verification.reference.comparison import MaskComparison, compare_masks, sample_indices
from sparcom_verification.reference.model import ReferenceModel

T = TypeVar("T")

DEVICE = os.environ.get("SPARCOM_TEST_DEVICE", "cuda")
NEEDS_CUDA = "needs a CUDA device"
LAYERS, INTERMEDIATE_SIZE, EXPERT_SIZE = 4, 1003, 176  # 1,003 fills neither a byte nor an aligned row
CONTEXT, STEP_TOKENS = 1024, 256
PROMPTS, LONGEST_PROMPT, GENERATED = (32, 700, 65) if DEVICE == "cuda" else (6, 300, 5)
SAMPLE = 8  # instructions compared with transformers, which runs on the CPU
HOLD_SECONDS, RELEASE_SECONDS = 60.0, 0.2  # the last request takes a moment to reach the engine core


@pytest.fixture(scope="session")
def device() -> str:
    """Return the device that tests run on; skip without it."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA)
    return DEVICE


@dataclass(frozen=True)
class Variant:
    """A model and the engine settings that vLLM runs it with."""

    architecture: str
    dtype: str = "float32"
    runner: str = ""
    ranks: int = 1
    cuda: bool = False
    quantization: str | None = None

    def __str__(self) -> str:
        ranks = f"{self.ranks} ranks" if self.ranks > 1 else ""
        parts = (self.architecture, self.dtype, self.runner, ranks, self.quantization)
        return " ".join(part for part in parts if part)


VARIANTS = [  # most informative first
    Variant("llama"),
    Variant("qwen2-moe"),
    Variant("llama", "bfloat16"),
    Variant("qwen2-moe", "bfloat16", cuda=True),  # vLLM's CPU experts: float32 only
    Variant("llama", runner="V1", cuda=True),  # CUDA uses model runner V2 by default
    Variant("gemma"),  # GELU, one activation module shared by all layers
    Variant("mixtral"),
    Variant("llama", ranks=2),
    Variant("qwen2-moe", ranks=2),
    Variant("qwen2"),
    Variant("gemma", "bfloat16"),
    Variant("qwen2", "bfloat16"),
]


class Case:
    """One variant with its engine and archives."""

    def __init__(self, variant: Variant, folder: Path) -> None:
        from sparcom_models import make_tiny_model
        from sparcom_models.testing import write_small_tokenizer
        from sparcom_verification.selftest import random_prompts

        self.variant, self.dtype, self.folder = variant, variant.dtype, folder
        self.prompts = random_prompts(PROMPTS, LONGEST_PROMPT)
        self._runner, self._close = asyncio.Runner(), contextlib.ExitStack()
        self.model = make_tiny_model(
            variant.architecture,
            folder / "model",
            layers=LAYERS,
            # Each rank writes whole bytes; FP8 products need multiples of 16.
            intermediate_size=1008 if variant.ranks > 1 or variant.quantization else INTERMEDIATE_SIZE,
            moe_intermediate_size=EXPERT_SIZE,
            context=CONTEXT,
            tokenizer=write_small_tokenizer(folder),
        ).path

    def start(self, **settings: Any) -> Any:
        """Start an engine with the variant's settings, updated by `settings`."""
        from sparcom_extractor.engine import CaptureEngine
        from sparcom_extractor.settings import EngineSettings

        common = EngineSettings(
            str(self.model),
            dtype=self.dtype,
            max_model_len=CONTEXT,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=PROMPTS,
            gpu_memory_utilization=0.1,
            kv_cache_gib=0.5,
            tensor_parallel_size=self.variant.ranks,
            quantization=self.variant.quantization,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing vLLM and torch's compiler raises warnings
            engine = self._runner.run(CaptureEngine.start(replace(common, **settings)))
        self._close.callback(lambda: self._runner.run(engine.close()))
        return engine

    def close(self) -> None:
        self._close.close()
        self._runner.close()

    @cached_property
    def engine(self) -> Any:
        """Return the engine with capture."""
        return self.start()

    def generate(self, engine: Any) -> Any:
        """Generate for all prompts."""
        from sparcom_verification.selftest import generate

        return self._together(engine, PROMPTS, generate(engine, self.prompts, GENERATED, in_flight=PROMPTS))

    def extract(self, engine: Any, name: str, prompts: list[list[int]], **options: Any) -> Archive:
        """Extract prompts into a new archive; every instruction must become complete."""
        return self.extract_counting_rows(engine, name, prompts, **options)[0]

    def extract_counting_rows(
        self, engine: Any, name: str, prompts: list[list[int]], **options: Any
    ) -> tuple[Archive, int]:
        """Extract like `extract`; return also the number of rows that the worker captured."""
        instructions = [Instruction(id=str(number), token_ids=tuple(ids)) for number, ids in enumerate(prompts)]
        extraction = engine.prepare(instructions, ExtractionOptions(**options), self.folder / f"{name}.zarr")
        progress = self._together(engine, len(prompts), extraction.run())
        assert progress.complete == len(prompts), progress
        return open_archive(self.folder / f"{name}.zarr"), extraction.rows_captured

    def steps(self, engine: Any) -> int:
        """Return the number of steps that an engine has run."""
        return int(self._runner.run(engine.call_workers("sparcom_statistics"))[0]["steps"])

    def _together(self, engine: Any, requests: int, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(begin_together(engine, min(requests, engine.max_in_flight), work))

    @cached_property
    def generated(self) -> Archive:
        """Extract prompts and generated tokens; the latter run in full CUDA graphs."""
        return self.extract(self.engine, "generated", self.prompts, positions="all", max_tokens=GENERATED)

    @cached_property
    def sequences(self) -> list[list[int]]:
        """Return the token ids of `generated`, per instruction."""
        return token_ids(self.generated)

    @cached_property
    def forced(self) -> Archive:
        """Extract the same token ids as prompts: split into several steps, most of them too long for a CUDA graph."""
        return self.extract(self.engine, "forced", self.sequences)

    def extract_alone(self, engine: Any, sequences: list[list[int]]) -> Archive:
        """Extract token ids as prompts, one request at a time."""
        at_once, engine.max_in_flight = engine.max_in_flight, 1
        try:
            return self.extract(engine, "alone", sequences)
        finally:
            engine.max_in_flight = at_once


async def begin_together(engine: Any, requests: int, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` so that its first requests begin in the same step: matrix products round by the shape of the batch."""
    await engine.llm.pause_generation(mode="keep", clear_cache=False)
    task = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout(HOLD_SECONDS):
            # vLLM sends no event when a request arrives.
            while len(engine.llm.output_processor.request_states) < requests and not task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(RELEASE_SECONDS)
    finally:
        await engine.llm.resume_generation()
    return await task


@contextlib.contextmanager
def open_case(variant: Variant, device: str, folder: Path) -> Iterator[Case]:
    """Make the case of a variant, and close its engines; skip if this machine cannot run it."""
    from sparcom_verification.selftest import ENVIRONMENT

    if device == "cpu" and variant.cuda:
        pytest.skip(NEEDS_CUDA)
    if device == "cuda" and torch.cuda.device_count() < variant.ranks:
        pytest.skip(f"{NEEDS_CUDA} for each of {variant.ranks} ranks")
    # Two engines must not share graphs compiled with other settings.
    cache = Path(os.environ.get("SPARCOM_TEST_CACHE", folder)) / str(variant).replace(" ", "-")
    environment = ENVIRONMENT | {"VLLM_CACHE_ROOT": str(cache / "vllm"), "TRITON_CACHE_DIR": str(cache / "triton")}
    if variant.dtype != "float32":
        del environment["TRITON_F32_DEFAULT"]
    if variant.runner == "V1":
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        case = Case(variant, folder)
        yield case
        case.close()


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def case(request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Return the case of a variant."""
    with open_case(request.param, device, tmp_path_factory.mktemp("case")) as made:
        yield made


@pytest.fixture(scope="module")
def dense_case(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Return the case of LLaMA in float32."""
    with open_case(VARIANTS[0], device, tmp_path_factory.mktemp("case")) as made:
        yield made


@pytest.fixture
def fp8_case(device: str, tmp_path: Path) -> Iterator[Case]:
    """Return the case of LLaMA with weights that vLLM quantizes to FP8 as it loads them."""
    with open_case(Variant("llama", "bfloat16", cuda=True, quantization="fp8"), device, tmp_path) as made:
        yield made


Rows = dict[str, NDArray[Any]]


def span(archive: Archive, index: int) -> tuple[NDArray[np.int32], Rows]:
    """Return the token ids (rows,) of one instruction and its rows of every captured array."""
    start = int(archive.instructions.token_start[index])
    stop = start + int(archive.instructions.token_length[index])
    return archive.read_tokens(start, stop)[0], {
        item.name: archive.read_rows(item.name, start, stop) for item in archive.captured
    }


def token_ids(archive: Archive) -> list[list[int]]:
    """Return the token ids per instruction."""
    return [span(archive, index)[0].tolist() for index in range(len(archive.instructions))]


@dataclass
class Differences:
    """Differing and compared values. rows_left_out: rows after other experts, whose bits are not comparable."""

    ids: int = 0
    routes: tuple[int, int] = (0, 0)
    weights: tuple[int, int] = (0, 0)
    bits: tuple[int, int] = (0, 0)
    rows_left_out: int = 0

    def add(self, name: str, wrong: NDArray[np.bool_]) -> None:
        differing, total = getattr(self, name)
        setattr(self, name, (differing + int(wrong.sum()), total + wrong.size))


def unpacked(masks: NDArray[np.uint8], neurons: int) -> NDArray[np.uint8]:
    """Unpack bits on the last axis."""
    return np.unpackbits(masks, axis=-1, bitorder="little", count=neurons)


def _by_expert(rows: Rows) -> Rows:
    """Sort the top-k of every row by expert: two experts with equal weights may swap places."""
    order = rows["router/expert"].argsort(axis=-1, kind="stable")
    names = ("router/expert", "router/weight")
    masks = np.take_along_axis(rows["expert_neuron/active"], order[..., None], axis=-2)
    return (
        rows
        | {name: np.take_along_axis(rows[name], order, axis=-1) for name in names}
        | {"expert_neuron/active": masks}
    )


def compare_archives(one: Archive, other: Archive, dtype: str) -> Differences:
    """Compare two archives of the same instructions."""
    found = Differences()
    for index in range(len(one.instructions)):
        (ids, left), (other_ids, right) = span(one, index), span(other, index)
        rows = min(len(ids), len(other_ids))
        found.ids += abs(len(ids) - len(other_ids)) + int((ids[:rows] != other_ids[:rows]).sum())
        left, right = ({name: values[:rows] for name, values in side.items()} for side in (left, right))
        if one.moe is not None:
            left, right = _by_expert(left), _by_expert(right)
            wrong = (left["router/expert"] != right["router/expert"]).any(axis=-1)
            found.add("routes", wrong)
            rerouted = wrong.any(axis=-1)
            same = int(rerouted.argmax()) if rerouted.any() else rows
            found.rows_left_out += rows - same
            rows = same
            error = np.abs(left["router/weight"][:rows] - right["router/weight"][:rows])
            found.add("weights", ~(error <= limits.WEIGHT_TOLERANCE_BETWEEN_RUNS[dtype]))
        for item in one.captured:
            if item.packed:
                masks = (unpacked(side[item.name][:rows], item.neurons) for side in (left, right))
                found.add("bits", np.not_equal(*masks))
    return found


def count_differences(counted: Archive, masks: Archive) -> int:
    """Return how many counts differ from the sums over the rows of the other archive."""
    differing = 0
    for index in range(len(masks.instructions)):
        rows = span(masks, index)[1]
        for item in counted.captured:
            expected = np.zeros(item.row, dtype=np.uint32)
            count_rows(item.name, rows, expected)
            differing += int((counted.read_rows(item.name, index, index + 1)[0] != expected).sum())
    return differing


def assert_archives_alike(one: Archive, other: Archive, dtype: str) -> None:
    """Check that token ids are equal, and everything else up to rounding."""
    found = compare_archives(one, other, dtype)
    assert found.ids == 0
    shares = {
        "bits": limits.DIFFERING_BITS,
        "routes": limits.DIFFERING_ROUTES_BETWEEN_RUNS,
        "weights": limits.DIFFERING_WEIGHTS_BETWEEN_RUNS,
    }
    assert found.bits[1] > 0
    for name, share in shares.items():
        differing, total = getattr(found, name)
        assert differing <= limits.allowed(share[dtype], total), f"{differing} of {total} {name} differ"


def compare_with_transformers(case: Case, archive: Archive) -> MaskComparison:
    """Compare a sample of instructions with transformers in float32 on the CPU."""
    info = archive.attributes.model
    reference = ReferenceModel(str(case.model), "float32", info.layer_ids, info.moe)
    return compare_masks(archive, reference, sample_indices(archive, SAMPLE), lambda _: np.zeros(0, np.int32))


@pytest.fixture
def assert_alike() -> Callable[[Archive, Archive, str], None]:
    """Return `assert_archives_alike`."""
    return assert_archives_alike


@pytest.fixture
def assert_alone() -> Callable[[Case, Any, Archive], None]:
    """Return a function that checks an archive, and compares its rows with those of each request alone."""

    def check(case: Case, engine: Any, archive: Archive) -> None:
        assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []
        assert_archives_alike(archive, case.extract_alone(engine, token_ids(archive)), case.dtype)

    return check


@pytest.fixture
def against_transformers() -> Callable[[Case, Archive], MaskComparison]:
    """Return `compare_with_transformers`."""
    return compare_with_transformers


@pytest.fixture
def compare() -> Callable[[Archive, Archive, str], Differences]:
    """Return `compare_archives`."""
    return compare_archives


@pytest.fixture
def wrong_counts() -> Callable[[Archive, Archive], int]:
    """Return `count_differences`."""
    return count_differences
