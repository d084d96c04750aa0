"""The interval of every cell and curve of metrics.json, against loops over the draws of instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparcom_analysis as sa
from sparcom_analysis.figures.alteration import layer_alteration_figure, layer_pair_figure
from sparcom_analysis.figures.experts import all_figures
from sparcom_analysis.resampling.bootstrap import draw_resamples
from sparcom_analysis.summary.length import length_table
from sparcom_analysis.tables.alteration import layer_alteration_table
from sparcom_analysis.tables.experts import frequency_table, top_table
from sparcom_data.testing import write_random_moe_archive

RESAMPLES, SEED = 25, 3
ENDS = (0.1, 0.9)


@dataclass(frozen=True)
class Compared:
    """An analysis of a mixture and its twin, and the draws of the base's and of the matched instructions, in loops."""

    found: sa.Analysis

    @property
    def metrics(self) -> sa.Metrics:
        return self.found.metrics

    def draws(self, categories: Sequence[str]) -> list[list[int]]:
        """The instructions of each draw, one entry a time that one is drawn."""
        weights = draw_resamples(categories, resamples=RESAMPLES, confidence=0.8, seed=SEED).weights
        return [[k for k, weight in enumerate(row) for _ in range(int(weight))] for row in weights]

    def means(self, values: NDArray[np.float64], categories: Sequence[str], name: str | None) -> NDArray[np.float64]:
        """Of each draw the mean over the instructions of a category, or over all: (resample, …)."""
        of = [[k for k in draw if name is None or categories[k] == name] for draw in self.draws(categories)]
        return np.array([np.mean([values[k] for k in draw], axis=0) for draw in of])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Twelve instructions of three categories, of which the twin has not all, nothing drawn."""
    folder = tmp_path_factory.mktemp("compared")
    for name, seed, failed in (("base", 0, (3,)), ("tuned", 1, (7,))):
        names = ("CLS", "CODE", "SUM")
        options: Any = {"categories": names, "per_category": 4, "lengths": (6, 14), "experts": 7}
        write_random_moe_archive(folder / f"{name}.zarr", seed=seed, failed=failed, **options)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"")
        chance: Any = {"resamples": RESAMPLES, "confidence": 0.8, "seed": SEED, "permutations": 9}
        tuned = folder / "tuned.zarr"
        found = sa.analyze(folder / "base.zarr", folder / "out", tuned=tuned, epsilon=0.2, matched_tokens=8, **chance)
    return Compared(found)


def same(low: Any, high: Any, results: NDArray[np.float64]) -> None:
    """Both ends are numpy's quantiles of the results over the first axis, those that are no number left out."""
    wanted = np.nanquantile(results, ENDS, axis=0)
    np.testing.assert_allclose(np.array([low, high], dtype=np.float64), wanted, rtol=0, atol=1e-12)


def test_expert_frequencies_over_all_and_of_the_most_chosen(compared: Compared) -> None:
    """Over all instructions as by category; those of table 6 are the same numbers, and their share the sum of f."""
    experts, part, top = compared.found.experts, compared.metrics.expert_frequency, compared.metrics.top_experts
    assert experts is not None
    assert part is not None
    assert top is not None
    f = experts.counts / experts.tokens[:, None, None]
    whole = compared.means(f, experts.categories, None)
    same(part.overall_low, part.overall_high, whole)
    places = np.array(top.overall_expert)
    picked = np.take_along_axis(whole, np.broadcast_to(places, (RESAMPLES, *places.shape)), axis=2)
    same(top.overall_frequency_low, top.overall_frequency_high, picked)
    assert top.frequency_low is not None
    assert top.frequency_high is not None
    assert top.share_low is not None
    assert top.share_high is not None
    for c, name in enumerate(top.categories):
        chosen = np.array(top.expert[c])
        own = compared.means(f, experts.categories, name)
        own = np.take_along_axis(own, np.broadcast_to(chosen, (RESAMPLES, *chosen.shape)), axis=2)
        same(top.frequency_low[c], top.frequency_high[c], own)
        same(top.share_low[c], top.share_high[c], own.sum(axis=2) / experts.choices)
        np.testing.assert_allclose(top.share[c], np.sum(top.frequency[c], axis=1) / experts.choices, atol=1e-12)


def centred(number: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The number plus the quantiles of the draws' deviations from their mean, at least 0."""
    below, above = np.quantile(drawn - drawn.mean(axis=0), ENDS, axis=0)
    return np.array([np.maximum(number + np.minimum(below, 0), 0), number + np.maximum(above, 0)])


def test_choices_that_move(compared: Compared) -> None:
    """Base and tuned are drawn alike; the interval is centred on the number and has it."""
    result, part = compared.found.results.experts, compared.metrics.expert_shift
    assert result is not None
    assert result.altered is not None
    assert part is not None
    twins, base = result.altered.twins, result.experts
    tuned = sa.instruction_experts(compared.found.results.tuned)  # type: ignore[arg-type]
    after = [tuned.frequencies(k) for k in twins.tuned.tolist()]
    shift = np.array([f - base.frequencies(k) for f, k in zip(after, twins.base.tolist(), strict=True)])
    for c, name in enumerate(part.categories):
        drawn = np.abs(compared.means(shift, twins.categories, name)).sum(axis=2) / 2
        ends = centred(np.array(part.moved[c]), drawn)
        np.testing.assert_allclose([part.moved_low[c], part.moved_high[c]], ends, rtol=0, atol=1e-12)  # type: ignore[index]
        assert (ends[0] <= part.moved[c]).all()
        assert (ends[1] >= part.moved[c]).all()


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), block=st.integers(1, 400), seed=st.integers(0, 99))
def test_moved_of_any_blocks(sizes: list[int], block: int, seed: int) -> None:
    """Any number of instructions a category and any block of experts give what loops give; one has no interval."""
    names = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    rng, count = np.random.default_rng(seed), len(names)
    sides = []
    for _ in range(2):
        tokens = rng.integers(1, 9, count)
        counts = rng.multinomial(tokens[:, None], np.full(6, 1 / 6), size=(count, 2)).astype(np.uint32)
        facts: Any = {"ids": [f"i{k}" for k in range(count)], "categories": names, "layer_ids": [0, 4]}
        where = np.arange(count)
        sides.append(
            sa.InstructionExperts("prompt", where, tokens=tokens, counts=counts, choices=1, without_rows=0, **facts)
        )
    draws = draw_resamples(names, resamples=11, confidence=0.8, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.bootstrap.BLOCK_VALUES", block)
        found = sa.moved_intervals(*sides, draws)
    shift = np.array([sides[1].frequencies(k) - sides[0].frequencies(k) for k in range(count)])
    for c, size in enumerate(sizes):
        own = [k for k, name in enumerate(names) if name == f"c{c}"]
        drawn = [np.mean([shift[k] for k in own for _ in range(int(row[k]))], axis=0) for row in draws.weights]
        moved = np.abs(shift[own].mean(axis=0)).sum(axis=1) / 2
        ends = centred(moved, np.abs(drawn).sum(axis=2) / 2) if size > 1 else np.full((2, 2), np.nan)
        np.testing.assert_allclose([found.low[c], found.high[c]], ends, rtol=0, atol=1e-12)


def test_both_models_by_layer_overlap_and_correlation(compared: Compared) -> None:
    """ISNs of both models by layer, overlap as 1 − alteration, and r likewise, by category and over all."""
    for result, component in zip(compared.found.results.neurons, compared.metrics.components or [], strict=True):
        altered, part = result.altered, component.isn_alteration
        assert altered is not None
        assert part is not None
        names = altered.twins.categories
        for c, name in [*enumerate(part.categories), (None, None)]:
            holder = part.overall if c is None else part
            for field, values in (
                ("base_by_layer", altered.base_counts),
                ("tuned_by_layer", altered.tuned_counts),
                ("overlap", altered.overlap),
            ):
                ends = [getattr(holder, f"{field}_{end}") for end in ("low", "high")]
                low, high = ends if c is None else (end[c] for end in ends)
                same(low, high, compared.means(values, names, name))
    experts, routed = compared.found.results.experts, compared.metrics.ise_alteration
    assert experts is not None
    assert experts.altered is not None
    assert routed is not None
    for c, name in [*enumerate(routed.categories), (None, None)]:
        holder = routed.overall if c is None else routed
        ends = [holder.correlation_low, holder.correlation_high]
        low, high = ends if c is None else (end[c] for end in ends)
        same(low, high, compared.means(experts.altered.correlation, experts.altered.twins.categories, name))


def cells(
    values: NDArray[np.float64], draw: Sequence[int], names: Sequence[str], pair: tuple[str, str], own: bool
) -> float:
    """One cell of one draw by loops: pairs of two draws of one instruction are none, self pairs counted if `own`."""
    first, second = ([k for k in draw if names[k] == name] for name in pair)
    if pair[0] != pair[1]:
        return float(np.mean([values[i, j] for i in first for j in second]))
    apart = [values[i, j] for i in first for j in first if i != j]
    mean = float(np.mean(apart)) if apart else np.nan
    if not own:
        return mean
    size = len(first)
    itself = sum(values[i, i] for i in first) / size
    return ((size - 1) * (mean if size > 1 else 0.0) + itself) / size


def test_matched_matrices_and_their_difference(compared: Compared) -> None:
    """Plain, matched and matched minus plain, with and without self pairs, from the same draws of those in both."""
    control, part = compared.found.results.control, compared.metrics.length_matched
    assert control is not None
    assert part is not None
    assert part.too_short > 0
    item, plain_experts = control.neurons[0], compared.found.experts
    assert plain_experts is not None
    kept = np.flatnonzero(item.places)
    matched = sa.instruction_experts(compared.found.results.archive, tokens=sa.TokenDraw(8, SEED))
    values = {
        "isn": (sa.similarity_pairs(item.plain).values, sa.similarity_pairs(item.matched).values),
        "ise": (sa.correlation_pairs(plain_experts).values, sa.correlation_pairs(matched).values),
    }
    names = list(item.matched.categories)
    draws = compared.draws(names)
    assert sorted(names.count(name) for name in set(names))[1] > 1  # two categories have an interval between them
    for kind, own, matrix in (
        ("isn", True, part.components[0].isn_similarity),
        ("isn", False, part.components[0].isn_similarity_without_self),
        ("ise", True, part.ise_correlation),
        ("ise", False, part.ise_correlation_without_self),
    ):
        assert matrix is not None
        before, after = values[kind][0][np.ix_(kept, kept)], values[kind][1]
        for a, b in np.ndindex(3, 3):
            pair = (matrix.categories[a], matrix.categories[b])
            ends = [
                (getattr(matrix, f"{p}low")[a][b], getattr(matrix, f"{p}high")[a][b])
                for p in ("plain_", "", "difference_")
            ]
            if min(names.count(name) for name in pair) < (3 if a == b else 2):
                assert ends == [(None, None)] * 3
                continue
            one, other = (np.array([cells(v, draw, names, pair, own) for draw in draws]) for v in (before, after))
            for (low, high), results in zip(ends, (one, other, other - one), strict=True):
                same(low, high, results)
    table = length_table(part, part.components[0].isn_similarity, "x", "x")
    assert table.columns[2:5] == ["plain", "plain_low", "plain_high"]
    assert table.rows[1][9:] == [
        part.components[0].isn_similarity.difference_low[0][1],
        part.components[0].isn_similarity.difference_high[0][1],
    ]  # type: ignore[index]


def bands_of(axes: Any) -> list[NDArray[np.float64]]:
    """Lowest and highest points of the bands behind the lines."""
    return [np.array([p.vertices[:, 1].min(), p.vertices[:, 1].max()]) for c in axes.collections for p in c.get_paths()]


def test_every_curve_has_its_band(compared: Compared) -> None:
    """The curves by layer draw their intervals within the axes, and no band where there is none."""
    drawn, part = all_figures(compared.metrics), compared.metrics.isn_alteration
    top, shift = compared.metrics.top_experts, compared.metrics.expert_shift
    assert top is not None
    assert shift is not None
    assert part is not None
    pair, alone = layer_pair_figure(part, "a").axes, layer_alteration_figure(part, "a").axes
    for axes, low, high in (
        (drawn["top_expert_share"].axes[0], top.share_low, top.share_high),
        (drawn["expert_moved"].axes[0], shift.moved_low, shift.moved_high),
        (pair[0], part.tuned_by_layer_low, part.tuned_by_layer_high),
        (pair[1], part.base_by_layer_low, part.base_by_layer_high),
        (alone[0], part.layer_low, part.layer_high),
    ):
        found = bands_of(axes)
        wanted = [[min(a), max(b)] for a, b in zip(low, high, strict=True)]  # type: ignore[arg-type, type-var]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        assert axes.get_ylim()[1] >= np.max(wanted)
    empty = part.model_copy(update={"layer_low": [[None] * len(part.layer_ids)] * 3})
    assert not bands_of(layer_alteration_figure(empty, "a").axes[0])


def test_tables_have_the_ends_of_their_numbers(compared: Compared) -> None:
    """Columns low and high hold the fields of metrics.json; without intervals there are no such columns."""
    metrics, part = compared.metrics, compared.metrics.expert_frequency
    top, altered = metrics.top_experts, metrics.isn_alteration
    assert part is not None
    assert top is not None
    assert altered is not None
    wide, ranks = frequency_table(metrics), top_table(metrics)
    assert list(wide.columns[3:]) == list(ranks.columns[4:]) == ["frequency", "low", "high"]
    assert list(wide.rows[0][3:]) == [part.mean[0][0][0], part.mean_low[0][0][0], part.mean_high[0][0][0]]  # type: ignore[index]
    assert list(ranks.rows[-1][3:]) == [
        getattr(top, name)[-1][-1]
        for name in ("overall_expert", "overall_frequency", "overall_frequency_low", "overall_frequency_high")
    ]
    layers = layer_alteration_table(altered, "a")
    assert layers.rows[0][layers.columns.index("ISNs tuned high")] == altered.tuned_by_layer_high[0][0]
    names = ("frequency_low", "frequency_high", "overall_frequency_low", "overall_frequency_high")
    plain = metrics.model_copy(update={"top_experts": top.model_copy(update=dict.fromkeys(names))})
    assert list(top_table(plain).columns) == ["category", "layer", "rank", "expert", "frequency"]


def test_without_resamples_every_end_is_null(make_moe: Callable[..., Any], undrawn: None, tmp_path: Path) -> None:
    """With 0 resamples each of these fields is null, and tables and figures are drawn without them."""
    archive = make_moe(lengths=(9, 14)).archive
    metrics = sa.analyze(archive, tmp_path, tuned=archive, resamples=0, permutations=0).metrics
    top, shift, length = metrics.top_experts, metrics.expert_shift, metrics.length_matched
    assert top is not None
    assert shift is not None
    assert length is not None
    assert (top.share_low, top.frequency_low, shift.moved_high, length.components[0].isn_similarity.low) == (None,) * 4
    assert metrics.isn_alteration is not None
    assert metrics.isn_alteration.overall.overlap_low is None
    assert len(top.share) == 2
    header = (tmp_path / "tables" / "top_experts.csv").read_text("utf-8").splitlines()[0]
    assert header == "category,layer,rank,expert,frequency"
