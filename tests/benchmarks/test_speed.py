"""The rounds of a measurement, with programmed times in place of engines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from verdict.judge import Place
from verdict.speed import SHAPES, Load, Measurement, fit_engine, make_loads
from verdict.steps import RESULTS, Context, Record, read_record

pytestmark = pytest.mark.torch
LOADS = [Load("prefill", [[1, 2, 3]] * 8, 1), Load("decode", [[1]] * 8, 4)]
FAST = Place("written", "/disk", rate=1e12, free=1 << 40)


class Programmed(Measurement):
    """Ways take programmed seconds per 24 tokens. Warm-ups, with fewer tokens, take `warm_up_factor` times as long."""

    times = {"plain": 1.0, "written": 1.01, "counted": 1.2}  # noqa: RUF012
    warm_up_factor = 1.0
    rows_computed_twice = 0
    order: tuple[tuple[str, str], ...] = ()

    async def time(self, load: Load, way: str) -> dict[str, Any]:
        self.order = (*self.order, (load.name, way))
        slower = self.warm_up_factor if len(load.prompts) < 8 else 1.0
        found: dict[str, Any] = {"seconds": self.times[way] * slower * load.tokens / 24}
        return found if way == "plain" else found | {"rows_computed_twice": self.rows_computed_twice}


def measure(folder: Path, place: Place = FAST, pairs: int = 3, seconds: float = 1e6, **changes: Any) -> Any:
    """Run a measurement; return it with its records."""
    context = Context("speed", folder, seconds, None)
    further = changes.pop("further", ())
    measurement = Programmed(context, None, None, [place], 1000, further)  # type: ignore[arg-type]
    for name, value in changes.items():
        setattr(measurement, name, value)
    asyncio.run(measurement.run(LOADS, pairs))
    records = [read_record(line) for line in (folder / RESULTS).read_bytes().splitlines()]
    return measurement, [record for record in records if record["kind"] == "pair"]


def last(pairs: list[Record]) -> Record:
    return pairs[-1]


def test_rounds_alternate_in_order(tmp_path: Path) -> None:
    """After the warm-up, both loads alternate, and every round reverses the order of the ways."""
    measurement, pairs = measure(tmp_path, further=("counted",))
    ways = ["plain", "written", "counted"]
    of_decode = [way for load, way in measurement.order[8:] if load == "decode"]
    assert of_decode == [*ways, *ways[::-1], *ways]
    assert [load for load, _ in measurement.order[8:]] == (["prefill"] * 3 + ["decode"] * 3) * 3
    assert [(pair["load"], pair["way"]) for pair in pairs[:3]] == [
        ("prefill", "written"),
        ("prefill", "counted"),
        ("decode", "written"),
    ]


def test_a_ratio_is_that_of_its_round(tmp_path: Path) -> None:
    """A ratio is plain time over the time of the way; the verdict is that of all pairs so far."""
    _, pairs = measure(tmp_path)
    assert last(pairs)["ratio"] == pytest.approx(1 / 1.01)
    assert [pair["verdict"] for pair in pairs] == ["undecided"] * 4 + ["holds"] * 2


@pytest.mark.parametrize(
    ("rate", "written", "verdict"), [(1e12, 1.5, "fails"), (23_500.0, 1.5, "undecided"), (23_500.0, 1.0, "holds")]
)
def test_a_slow_disk_cannot_fail_the_goal(rate: float, written: float, verdict: str, tmp_path: Path) -> None:
    """A ratio below the goal fails it only if the disk takes the rate of plain vLLM, here 24,000 bytes per second."""
    place = Place("written", "/disk", rate, free=1 << 40)
    _, pairs = measure(tmp_path, place, times={"plain": 1.0, "written": written}, warm_up_factor=2.0)
    assert {pair["verdict"] for pair in pairs[4:]} == {verdict}
    assert ("slower than the load needs" in last(pairs).get("reason", "")) == (verdict == "undecided")


def test_time_ends_the_rounds(tmp_path: Path) -> None:
    """No round starts that would exceed the time of the step; the pairs so far stay."""
    measurement, pairs = measure(tmp_path, seconds=7.0)
    assert pairs == []
    assert len(measurement.order) == 6, "only the warm-up"


def test_a_place_that_is_too_slow_is_not_used(tmp_path: Path) -> None:
    """Without a place, a load is not measured, and the reason is recorded."""
    _, pairs = measure(tmp_path, Place("written", "/disk", rate=100.0, free=1 << 40))
    assert pairs == []
    records = [read_record(line) for line in (tmp_path / RESULTS).read_bytes().splitlines()]
    assert [(record["kind"], record["place"]) for record in records] == [("place", None)] * 2
    assert "/disk takes 0 MB/s" in records[0]["refusals"][0]


def test_preemptions_leave_a_ratio_undecided(tmp_path: Path) -> None:
    """Work that the engine did twice is not the cost of capture."""
    _, pairs = measure(tmp_path, rows_computed_twice=3)
    assert last(pairs)["verdict"] == "undecided"
    assert last(pairs)["reason"] == "3 rows were computed twice, after preemptions"


@pytest.mark.parametrize(
    ("shape", "gib", "sequences"),
    [("llama-2-7b", 79.1, 256), ("llama-2-7b", 139.8, 256), ("qwen1.5-moe", 79.1, 256), ("llama-2-7b", 44.0, None)],
)
def test_two_engines_fit_one_device(shape: str, gib: float, sequences: int | None) -> None:
    """On 80 GB and more, two engines with 256 requests at once fit; on 44 GB no two engines do."""
    fitted = fit_engine(SHAPES[shape], gib)
    assert (fitted and fitted[0]) == sequences


def test_the_loads_use_the_kv_cache_without_preemption() -> None:
    """The KV cache of 256 requests holds the longest of them."""
    fitted = fit_engine(SHAPES["llama-2-7b"], 79.1)
    assert fitted is not None
    decode = make_loads(SHAPES["llama-2-7b"], tiny=False)[1]
    tokens = 256 * (len(decode.prompts[0]) + decode.generated)
    assert fitted[1] * 2**30 >= tokens * 2 * 32 * 4096 * 2
