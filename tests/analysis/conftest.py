"""Archives of given masks or their counts, with every kind of positions, category and state; random MoE archives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from sparcom_analysis.archive.rows import TokenFacts
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.options import Options
from sparcom_data import create
from sparcom_data.archive import Archive, open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import Granularity, Positions
from sparcom_data.storage import DurableStore
from sparcom_data.testing import MoeTruth, random_attributes, write_random_moe_archive


@dataclass(frozen=True)
class Case:
    """An archive and its ground truth: bool (rows, layer, neuron) of each instruction, prompt rows first."""

    archive: Archive
    masks: list[NDArray[np.bool_]]


MakeCase = Callable[..., Case]


def build_case(
    path: Path,
    lengths: Sequence[int],
    categories: Sequence[str],
    *,
    layers: int = 3,
    neurons: int = 20,
    chunk_tokens: int = 4,
    positions: Positions = "prompt",
    responses: Sequence[int] = (),
    failed: Sequence[int] = (),
    unfinished: Sequence[int] = (),
    rates: tuple[float, ...] = (0.4,),
    seed: int = 0,
    granularity: Granularity = "token",
    chunk_instructions: int = 2,
) -> Case:
    """Write an archive of `lengths` prompt rows and `responses` of six reserved response rows; density varies.

    The other granularity, with the same arguments, gives the counts of the same masks.
    """
    rng = np.random.default_rng(seed)
    count = len(lengths)
    reserved = 0 if positions == "prompt" else 6
    layout = plan_layout(lengths, positions, reserved, [k not in failed for k in range(count)])
    columns = InstructionColumns(
        id=[f"i{k}" for k in range(count)],
        category=list(categories),
        source=[""] * count,
        text=["some text"] * count,
        error=["on purpose" if k in failed else "" for k in range(count)],
    )
    attributes = random_attributes(layers, neurons, positions=positions, max_tokens=reserved, granularity=granularity)
    create_archive(path, attributes, columns, layout, chunk_tokens=chunk_tokens, chunk_instructions=chunk_instructions)
    with zarr.config.set({"array.write_empty_chunks": True}):  # otherwise zarr omits chunks of zeros
        store = zarr.open_group(DurableStore(path), mode="r+", use_consolidated=False)[
            "neuron/count" if granularity == "count" else "neuron/active"
        ]
    assert isinstance(store, zarr.Array)
    masks, done = [], []
    for k in range(count):
        prompt = 0 if positions == "response" else lengths[k]
        rows = prompt + (responses[k] if responses else 0)
        mask = rng.random((rows, layers, neurons)) < rates[k % len(rates)]
        masks.append(mask)
        if k in failed or k in unfinished:
            continue
        start = int(layout.token_start[k])
        if granularity == "count":
            store[k] = mask.sum(axis=0, dtype=np.uint32)
        else:
            store[start : start + rows] = np.packbits(mask, axis=-1, bitorder="little")
        place = np.arange(rows, dtype=np.int32) + layout.first_position[k]
        done.append(CompletedInstruction(k, start, np.zeros(rows, np.int32), place))
    committer = ArchiveCommitter(path)
    committer.complete(done)
    committer.close()
    return Case(open_archive(path), masks)


class Copies:
    """Archives written once per session and copied per test, because writing one takes half a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truths: dict[str, tuple[Path, Any]] = {}

    def copy(self, write: Callable[..., Any], path: Path, *arguments: Any, **options: Any) -> tuple[Archive, Any]:
        """Copy what `write(folder, *arguments, **options)` writes; return the archive and what `write` returned."""
        key = repr((write.__name__, create.TOKEN_CHUNK, arguments, sorted(options.items())))
        if key not in self.truths:
            source = self.folder / f"{len(self.truths)}.zarr"
            self.truths[key] = source, write(source, *arguments, **options)
        source, truth = self.truths[key]
        shutil.copytree(source, path)
        return open_archive(path), truth


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Return the session's `Copies`."""
    return Copies(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def make_case(tmp_path: Path, copies: Copies) -> MakeCase:
    """Return a function like `build_case` that writes into its own folder."""
    made = 0

    def make(lengths: Sequence[int], categories: Sequence[str], **options: object) -> Case:
        nonlocal made
        made += 1
        archive, case = copies.copy(build_case, tmp_path / f"{made}.zarr", lengths, categories, **options)
        return Case(archive, [mask.copy() for mask in case.masks])

    return make


@pytest.fixture
def typical(make_case: MakeCase) -> Case:
    """Nine instructions of three categories, one failed, with chunks that split instructions."""
    return make_case(
        (5, 9, 3, 12, 7, 4, 8, 6, 10),
        ("QA", "CODE", "QA", "", "CODE", "QA", "", "CODE", ""),
        failed=(4,),
        rates=(0.3, 0.5),
    )


@dataclass(frozen=True)
class MoeCase:
    """An archive of an MoE model and its ground truth."""

    archive: Archive
    truth: MoeTruth

    def rows(self, index: int) -> slice:
        """Token rows of an instruction."""
        start = int(self.truth.layout.token_start[index])
        return slice(start, start + int(self.truth.layout.capacity[index]))

    @property
    def complete(self) -> list[int]:
        """Indices of complete instructions."""
        return self.archive.instructions.complete.tolist()  # type: ignore[no-any-return]


@pytest.fixture
def make_moe(tmp_path: Path, copies: Copies) -> Callable[..., MoeCase]:
    """Return a function like `write_random_moe_archive` that writes into its own folder."""
    made = 0

    def make(**options: Any) -> MoeCase:
        nonlocal made
        made += 1
        return MoeCase(*copies.copy(write_random_moe_archive, tmp_path / f"moe{made}.zarr", **options))

    return make


def expert_counts(
    counts: NDArray[Any], tokens: Sequence[int], categories: Sequence[str], *, top_k: int = 1, **options: Any
) -> ExpertCounts:
    """Return counts (n, layer, expert) of T tokens each, like `find_ises`, without an archive on disk."""
    count = len(counts)
    model = SimpleNamespace(model=SimpleNamespace(id="lab/made-up"))
    return ExpertCounts(
        archive=SimpleNamespace(path="made-up.zarr", attributes=model),  # type: ignore[arg-type]
        options=Options(**({"n_resamples": 0, "n_permutations": 0} | options)),
        positions="prompt",
        token_facts=TokenFacts(),
        instruction=np.arange(count),
        ids=[f"i{k}" for k in range(count)],
        categories=list(categories),
        sources=[""] * count,
        tokens=np.array(tokens, dtype=np.int64),
        without_rows=0,
        counts=np.array(counts, dtype=np.uint32),
        layer_ids=list(range(1, counts.shape[1] + 1)),
        top_k=top_k,
    )


@pytest.fixture(scope="session")
def make_counts() -> Callable[..., ExpertCounts]:
    """Return `expert_counts`."""
    return expert_counts


def overwrite(archive: Archive, name: str, key: Any, value: Any) -> Archive:
    """Change an array without the Archive object, and open the archive again."""
    array = zarr.open_group(DurableStore(archive.path), mode="r+", use_consolidated=False)[name]
    assert isinstance(array, zarr.Array)
    array.with_config({"write_empty_chunks": True})[key] = value
    return open_archive(archive.path)


@pytest.fixture
def damage() -> Callable[..., Archive]:
    """Return `overwrite`."""
    return overwrite
