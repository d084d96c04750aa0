"""The comparisons of the GPU tests find differences. They need no device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return an archive of an MoE model and its copy."""
    write_random_moe_archive(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    return tmp_path / "a.zarr", tmp_path / "b.zarr"


def change(archive: Path, name: str, edit: Callable[[Any], None]) -> None:
    """Edit the values of an array."""
    array = zarr.open_array(archive / name, mode="r+")
    values = np.asarray(array[:])
    edit(values)
    array[:] = values


def differing(compare: Callable[..., Any], one: Path, other: Path) -> tuple[int, ...]:
    """Return how many ids, routes, weights and bits differ, and how many rows were left out."""
    found = compare(open_archive(one), open_archive(other), "float32")
    assert found.bits[1] > found.routes[1]
    return found.ids, found.routes[0], found.weights[0], found.bits[0], found.rows_left_out


def test_one_difference_is_counted_once(pair: tuple[Path, Path], compare: Callable[..., Any]) -> None:
    """A token id, a weight, and a bit of a dense, a routed and a shared expert's neuron are each counted once."""

    def flip(values: Any) -> None:
        values.reshape(len(values), -1)[0, 0] ^= 1

    def increase(values: Any) -> None:
        values[0, 1, 0] += 1e-3

    assert differing(compare, *pair) == (0, 0, 0, 0, 0)
    change(pair[1], "token/id", lambda values: values.__setitem__(1, values[1] + 1))
    change(pair[1], "router/weight", increase)
    for name in ("neuron/active", "expert_neuron/active", "shared_expert_neuron/active"):
        change(pair[1], name, flip)
    assert differing(compare, *pair) == (1, 0, 1, 3, 0)


def test_the_order_of_experts_does_not_matter(pair: tuple[Path, Path], compare: Callable[..., Any]) -> None:
    """Two experts may swap places together with their weights and neurons, but not without."""

    def swap(values: Any) -> None:
        values[3, 0, [0, 1]] = values[3, 0, [1, 0]]

    for name in ("router/expert", "router/weight"):
        change(pair[1], name, swap)
    assert differing(compare, *pair)[3] > 0
    change(pair[1], "expert_neuron/active", swap)
    assert differing(compare, *pair) == (0, 0, 0, 0, 0)


def test_bits_after_another_expert_are_left_out(pair: tuple[Path, Path], compare: Callable[..., Any]) -> None:
    """Rows after another expert are computed from other values: their routes are compared, their bits are not."""
    archive = open_archive(pair[0])
    start, length = int(archive.instructions.token_start[1]), int(archive.instructions.token_length[1])
    assert archive.moe is not None
    experts = range(archive.moe.experts)

    def reroute(values: Any) -> None:
        for row in (start + 1, start + length - 1):
            values[row, 0, 0] = next(expert for expert in experts if expert not in values[row, 0])

    def flip(values: Any) -> None:
        values.reshape(len(values), -1)[[start, start + 1], 0] ^= 1

    change(pair[1], "router/expert", reroute)
    change(pair[1], "neuron/active", flip)
    assert differing(compare, *pair) == (0, 2, 0, 1, length - 1)


@pytest.mark.parametrize("write", [write_random_archive, write_random_moe_archive])
def test_wrong_counts_are_found(write: Callable[..., None], tmp_path: Path, wrong_counts: Callable[..., int]) -> None:
    """Counts of the same rows are equal in every component; a changed count is found."""
    write(tmp_path / "masks.zarr", seed=1)
    write(tmp_path / "counts.zarr", seed=1, granularity="count")
    masks, counts = open_archive(tmp_path / "masks.zarr"), open_archive(tmp_path / "counts.zarr")
    assert wrong_counts(counts, masks) == 0
    for number, item in enumerate(counts.captured, 1):
        change(tmp_path / "counts.zarr", item.name, lambda values: values.reshape(-1).__setitem__(0, 99))
        assert wrong_counts(open_archive(tmp_path / "counts.zarr"), masks) == number
