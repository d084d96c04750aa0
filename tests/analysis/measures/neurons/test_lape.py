"""LAPE, checked with its steps in fractions and loops, on random counts and archives, and by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import Population
from sparcom_analysis.archive.rows import TokenFacts
from sparcom_analysis.frequencies import activation_counts
from sparcom_analysis.isn import IsnSets, find_isns
from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.measures.measure import NotComputableError
from sparcom_analysis.measures.neurons.lape import MEASURE, lape
from sparcom_analysis.options import Options
from sparcom_analysis.pooled import PooledCounts
from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_moe_archive

Rates = dict[str, float]
RATES = st.fixed_dictionaries(
    {
        "lape_top": st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]),
        "lape_filter": st.sampled_from([0.95, 0.5, 0.2, 0.001, 1.0]),
        "lape_bar": st.sampled_from([0.95, 0.5, 0.75, 1.0]),
    }
)


def isn_from(counts: NDArray[np.int64], tokens: list[int], shape: tuple[int, int, int]) -> IsnSets:
    """Return empty sets with counts (c, layer × expert × neuron) of categories "0", "1" …, two instructions each."""
    layers, experts, neurons = shape
    part = Population("expert_neuron" if experts > 1 else "neuron", list(range(layers)), experts, 1, neurons)
    names = [str(code) for code in range(len(tokens))] * 2
    half = [total // 2 for total in tokens]
    rest = [total - first for total, first in zip(tokens, half, strict=True)]
    pooled = PooledCounts(part, names, np.array(half + rest))
    for k, one in enumerate(np.concatenate([counts // 3, counts - counts // 3])):
        padded = np.zeros((layers, experts, part.neuron_bytes * 8), dtype=np.uint32)
        padded[:, :, :neurons] = one.reshape(shape)
        pooled.add(k, padded.reshape(layers, -1))
    n, model = len(names), SimpleNamespace(id="m", layers=layers)
    return IsnSets(
        archive=SimpleNamespace(path="A.zarr", attributes=SimpleNamespace(model=model)),  # type: ignore[arg-type]
        options=Options(),
        positions="prompt",
        token_facts=TokenFacts(),
        instruction=np.arange(n),
        ids=[f"i{k}" for k in range(n)],
        categories=names,
        sources=[""] * n,
        tokens=np.array(half + rest),
        without_rows=0,
        population=part,
        minimum_count=np.ones(n, dtype=np.int64),
        sets=Bitsets(n, -(-layers * part.columns // 64)),
        layer_counts=np.zeros((n, layers), dtype=np.int64),
        dead_layers=np.zeros((n, layers), dtype=np.bool_),
        pooled=pooled,
    )


def flat(ds: xr.Dataset, part: Population) -> NDArray[np.int64]:
    """Return the index of each selected neuron into (layer, expert, neuron)."""
    layer = np.searchsorted(part.layer_ids, ds["member_layer"].values)
    expert = ds["member_expert"].values if part.routed else 0
    return (layer * part.experts + expert) * part.neurons + ds["member_neuron"].values  # type: ignore[no-any-return]


def check(ds: xr.Dataset, part: Population, counts: Sequence[Sequence[int]], tokens: list[int], rates: Rates) -> None:
    """Check the Dataset against the steps, neuron by neuron."""
    p = [[Fraction(count, total) for count in row] for row, total in zip(counts, tokens, strict=True)]
    every = sorted(value for row in p for value in row)
    least, bar = (
        every[max(1, round(Fraction(str(rates[name])) * len(every))) - 1] for name in ("lape_filter", "lape_bar")
    )
    ranked = []
    for i in range(len(p[0])):
        own = sorted(float(row[i]) for row in p)
        if not any(row[i] > least for row in p):
            continue
        q = [value / sum(own) for value in own]
        ranked.append((round(-sum(part * math.log(part) for part in q if part), 12), i))
    wanted = round(Fraction(str(rates["lape_top"])) * len(p[0]))
    chosen = sorted(ranked)[:wanted]
    said = {name: ds.attrs[name] for name in ("passed", "wanted", "selected", "filter", "bar")}
    assert said == {
        "passed": len(ranked),
        "wanted": wanted,
        "selected": len(chosen),
        "filter": float(least),
        "bar": float(bar),
    }
    places = flat(ds, part)
    assert places.tolist() == [i for _, i in chosen]
    np.testing.assert_allclose(ds["entropy"], [value for value, _ in chosen], rtol=0, atol=1e-12)
    for code, row in enumerate(p):
        assert ds["frequency"].values[code].tolist() == [float(row[i]) for _, i in chosen]
        mine = sorted(i for _, i in chosen if row[i] > bar)
        assert sorted(places[ds["specific"].values[code]].tolist()) == mine
        layers = [sum(i // part.width == j for i in mine) for j in range(part.layers)]
        assert (ds["layer_value"].values[code].tolist(), int(ds["value"][code])) == (layers, len(mine))


@settings(deadline=None, max_examples=40)
@given(
    categories=st.integers(2, 4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12)),
    rate=st.sampled_from([0.05, 0.4, 0.9]),
    rates=RATES,
    seed=st.integers(0, 9999),
)
def test_counts_equal_the_steps(categories, shape, rate, rates, seed):  # type: ignore[no-untyped-def]
    """For any counts, many of them tied, selection, specificity, entropy and both percentiles equal the steps."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 12, size=categories).tolist()
    counts = np.array([rng.binomial(total, rate, size=math.prod(shape)) for total in tokens])
    isn = isn_from(counts, tokens, shape)
    check(lape(isn, **rates), isn.population, counts.tolist(), tokens, rates)


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    categories=st.lists(st.sampled_from(["a", "b", ""]), min_size=4, max_size=7).filter(
        lambda names: len(set(names)) > 1
    ),
    granularity=st.sampled_from(["token", "count"]),
    block_bytes=st.integers(1, 400),
    pool=st.booleans(),
    seed=st.integers(0, 99),
)
def test_archives_equal_loops_over_tokens(make_case, categories, granularity, block_bytes, pool, seed):  # type: ignore[no-untyped-def]
    """Tokens are pooled over the category's instructions, from masks or counts, for any block size."""
    lengths = np.random.default_rng(seed).integers(1, 12, size=len(categories)).tolist()
    case = make_case(lengths, categories, granularity=granularity, seed=seed, rates=(0.1, 0.6))
    rates = {"lape_top": 0.2, "lape_filter": 0.6, "lape_bar": 0.7}
    isn = find_isns(case.archive, block_bytes=block_bytes, pool=pool)
    found = lape(isn, **rates)
    order = list(dict.fromkeys(categories))
    assert found["category"].values.tolist() == [name or "(none)" for name in order]
    members = [[k for k, category in enumerate(categories) if category == name] for name in order]
    counts = [sum(case.masks[k].sum(axis=0) for k in mine).reshape(-1).tolist() for mine in members]
    tokens = [sum(lengths[k] for k in mine) for mine in members]
    assert found["tokens"].values.tolist() == tokens
    check(found, isn.population, counts, tokens, rates)


def test_every_population_and_selection(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Pooled counts equal those of `activation_counts`, also after a selection and for other groups."""
    archive = make_moe(failed=(3,)).archive
    rates = {"lape_top": 0.2, "lape_filter": 0.5, "lape_bar": 0.5}
    for population in ("expert_neuron", "shared_expert_neuron", "neuron"):
        isn = find_isns(archive, population=population, pool=True)
        for some in (isn, isn.take(np.array([7, 1, 0, 5])), isn.grouped(("category", "source"))):
            counts = np.zeros((len(some.labels), isn.population.total), dtype=int)
            for k, name in enumerate(some.ids):
                counts[some.codes[k]] += activation_counts(archive, name, population=population).reshape(-1)
            tokens = np.bincount(some.codes, weights=some.tokens).astype(int).tolist()
            check(lape(some, **rates), isn.population, counts.tolist(), tokens, rates)


def test_twelve_neurons_by_hand() -> None:
    """Ten tokens of one category and twenty of the other, worked out on paper.

    The twelfth smallest of the 24 p is 0.4, so neurons 1 to 4 are dropped: 1 although it is active in one category
    alone, 4 although its p is exactly 0.4. Neurons 0 and 7 have entropy 0. Neuron 5 follows with q = 10/11 and 1/11,
    before 9 with 0.9 and 0.1. The 17th smallest p is 0.6: 0 is specific to the second category, 7 to the first, 5 to
    none.
    """
    counts = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 5], [20, 0, 2, 6, 8, 1, 12, 0, 16, 2, 20, 10]])
    found = lape(isn_from(counts, [10, 20], (3, 1, 4)), lape_top=0.25, lape_filter=0.5, lape_bar=0.7)
    assert [found.attrs[name] for name in ("filter", "bar", "passed", "wanted")] == [0.4, 0.6, 8, 3]
    assert (found["member_layer"].values.tolist(), found["member_neuron"].values.tolist()) == ([0, 1, 1], [0, 3, 1])
    expected = -(10 / 11 * math.log(10 / 11) + 1 / 11 * math.log(1 / 11))
    np.testing.assert_allclose(found["entropy"], [0, 0, expected], rtol=0, atol=1e-12)
    assert found["specific"].values.tolist() == [[False, True, False], [True, False, False]]
    assert found["layer_value"].values.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("digits", [12, 17])
def test_equal_entropies_go_to_the_lower_index(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same p in another order of categories has exactly the same entropy, even if nothing is rounded."""
    monkeypatch.setattr("sparcom_analysis.measures.neurons.lape.TIE_DIGITS", digits)
    rng = np.random.default_rng(1)
    base = rng.integers(1, 1000, size=9)
    counts = np.array([rng.permutation(base) for _ in range(200)]).T
    found = lape(isn_from(counts, [1000] * 9, (1, 1, 200)), lape_top=0.5, lape_filter=0.01)
    assert found["member_neuron"].values.tolist() == list(range(100))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one, seven or all neurons give the same bytes."""
    isn = isn_from(np.random.default_rng(2).integers(0, 40, size=(12, 300)), [40] * 12, (2, 1, 150))
    expected = lape(isn, lape_top=0.5, lape_filter=0.8)
    for block in (1, 7, 299):
        monkeypatch.setattr("sparcom_analysis.measures.neurons.lape.BLOCK_NEURONS", block)
        xr.testing.assert_identical(lape(isn, lape_top=0.5, lape_filter=0.8), expected)


def test_one_category_and_counts_too_large_are_not_computable(monkeypatch: pytest.MonkeyPatch) -> None:
    """One category, and sums above the memory limit, are not computable."""
    with pytest.raises(NotComputableError, match="LAPE needs at least two categories"):
        lape(isn_from(np.arange(20)[None], [20], (2, 1, 10)))
    isn = isn_from(np.arange(40).reshape(2, 20), [40, 40], (2, 1, 10)).take(np.array([0, 1]))
    monkeypatch.setattr("sparcom_analysis.pooled.MAX_BYTES", 100)
    with pytest.raises(NotComputableError, match="2 categories of 20 neurons take more"):
        lape(isn)


def test_many_tokens_do_not_wrap() -> None:
    """Beyond 2^32 tokens per category, sums take eight bytes."""
    pooled = PooledCounts(Population("neuron", [0], 1, 1, 8), ["a", "a", "b"], np.array([2**32 - 1, 2**32 - 1, 5]))
    for k in range(2):
        pooled.add(k, np.full((1, 8), 2**32 - 1, dtype=np.uint32))
    assert pooled.counts.dtype == np.uint64
    assert pooled.counts[0].tolist() == [2**33 - 2] * 8


def test_rates_out_of_range_are_all_named() -> None:
    """Rates outside (0, 1] are all named at once."""
    with pytest.raises(InvalidInputError) as error:
        lape(isn_from(np.ones((2, 4), dtype=int), [3, 3], (1, 1, 4)), lape_top=0, lape_filter=1.2)
    assert len(error.value.problems) == 2
    assert "lape_top must be above 0 and at most 1; it is 0" in str(error.value)


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """LAPE of routed experts."""
    path = tmp_path_factory.mktemp("lape") / "A.zarr"
    write_random_moe_archive(path, categories=("b", "a|$x$", ""), per_category=5)
    isn = find_isns(open_archive(path), top=0.3, n_resamples=0, n_permutations=0, pool=True)
    found = lape(isn, lape_top=0.4, lape_filter=0.5, lape_bar=0.5)
    members = {}
    for code in range(3):
        held = [{tuple(x) for x in np.argwhere(isn.mask(k)).tolist()} for k in np.flatnonzero(isn.codes == code)]
        members[code] = {x for x in set().union(*held) if sum(x in one for one in held) >= 3}
    for code, specific in enumerate(found["specific"].values):
        left = {tuple(np.unravel_index(i, isn.mask(0).shape)) for i in flat(found, isn.population)[specific]}
        right = members[code] - members[(code + 1) % 3] - members[(code + 2) % 3]
        jaccard = len(left & right) / len(left | right)
        assert float(found["jaccard_with_unique"][code]) == pytest.approx(jaccard, abs=1e-12)
    return found


def test_datasets_survive_json(ds: xr.Dataset) -> None:
    """Every variable comes back equal; the Jaccard index with unique neurons was checked by the fixture."""
    xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)


def test_sentences_give_the_numbers(ds: xr.Dataset) -> None:
    """Sentences give the number selected, the category with most, and the overlap with unique neurons."""
    one = ds.copy(deep=True).assign_attrs(selected=1234, neurons=5000)
    one["value"][:], one["jaccard_with_unique"][:] = [700, 2, 3], [0.2, 0.1, np.nan]
    assert MEASURE.sentences(one) == [
        "LAPE selects 1,234 of the 5,000 neurons of routed experts by entropy over categories; b has the most specific "
        "neurons, 700.",
        "The Jaccard index of a category's specific and unique neurons is 0.150 on average.",
    ]
    one["value"][:] = [700, 700, 3]
    first, _ = MEASURE.sentences(one)
    assert first.endswith("b and a|$x$ have the most specific neurons, 700 each.")
    one["value"][:] = 0
    assert MEASURE.sentences(one)[0].endswith("none is specific to a category.")
    none = one.assign_attrs(selected=0, passed=7, wanted=0)
    assert MEASURE.sentences(none) == ["LAPE selects no neurons of routed experts: 7 pass the filter, 0 are requested."]
    assert "LAPE (Tang et al. 2024)" in MEASURE.caption(ds)


def test_plots_show_the_numbers(ds: xr.Dataset) -> None:
    """The figure has bars per layer, with one part per category."""
    assert MEASURE.plot is not None
    ax = MEASURE.plot(ds)
    assert MEASURE.plot(ds, ax=ax, title="mine") is ax
    assert ax.get_title() == "mine"
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers[:3]]
    assert heights == ds["layer_value"].values.tolist()
