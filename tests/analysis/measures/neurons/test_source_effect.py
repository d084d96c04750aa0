"""Effects of category and source: values, intervals, tests and sentences, checked with direct computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparcom_analysis as sp
from sparcom_analysis.measures.measure import NotComputableError
from sparcom_analysis.measures.neurons.source_effect import plot, sentences, source_effect
from sparcom_analysis.resampling.pairs import PairMatrix
from sparcom_analysis.resampling.permutation import permuted_labels
from sparcom_data.testing import write_random_archive, write_random_moe_archive

FEW: dict[str, Any] = {"n_resamples": 40, "n_permutations": 50}


def opened(path: Path, sources: Any, moe: bool = False) -> sp.Archive:
    """Return a random archive of three categories whose instructions come from these sources in turn."""
    write = write_random_moe_archive if moe else write_random_archive
    write(path, categories=["CLS", "CODE", "SUM"], per_category=8, lengths=(9, 20))
    archive = sp.open_archive(path)
    table = archive.instructions.source
    table[:] = [sources[k % len(sources)] for k in range(len(table))]
    return archive


def direct(subject: Any) -> tuple[dict[tuple[bool, bool], float], np.ndarray[Any, Any]]:
    """Return the mean over cells of each kind of pairs, (same category, same source), by loops over pairs."""
    values, groups = subject.pairs.values, list(zip(subject.names, subject.sources, strict=True))
    cells: dict[Any, list[float]] = {}
    for i, j in zip(*np.nonzero(np.triu(~np.isnan(values), 1)), strict=True):
        for key in {(groups[i], groups[j]), (groups[j], groups[i])}:
            cells.setdefault(key, []).append(values[i, j])
    kinds: dict[tuple[bool, bool], list[float]] = {}
    for (a, b), held in cells.items():
        kinds.setdefault((a[0] == b[0], a[1] == b[1]), []).append(float(np.mean(held)))
    labels = list(dict.fromkeys(groups))
    matrix = np.array([[np.mean(cells[a, b]) if (a, b) in cells else np.nan for b in labels] for a in labels])
    return {kind: float(np.mean(held)) for kind, held in kinds.items()}, matrix


@pytest.mark.parametrize("moe", [False, True])
def test_effects_are_differences_of_means_over_cells(tmp_path: Path, moe: bool) -> None:
    """Both effects, the four kinds of pairs and every cell are right, for neurons and for experts."""
    archive = opened(tmp_path / "a.zarr", ["natural", "synthetic", "synthetic"], moe)
    subject: Any = sp.find_ises(archive) if moe else sp.find_isns(archive)
    ds = source_effect(subject, **FEW)
    kinds, matrix = direct(subject)
    np.testing.assert_allclose(ds["value"], matrix, atol=1e-12)
    np.testing.assert_allclose(
        ds["kind_value"],
        [kinds[key] for key in ((True, True), (True, False), (False, True), (False, False))],
        atol=1e-12,
    )
    expected = [kinds[True, False] - kinds[False, False], kinds[False, True] - kinds[False, False]]
    np.testing.assert_allclose(ds["effect"], expected, atol=1e-12)
    np.testing.assert_allclose(ds["difference"], expected[0] - expected[1], atol=1e-12)
    assert (ds["effect_ci_low"] <= ds["effect_ci_high"]).all()


def test_a_real_effect_is_found(tmp_path: Path) -> None:
    """If values depend on the source alone, its effect is significant and the sentence reports it."""
    archive = opened(tmp_path / "a.zarr", ["natural", "synthetic"])
    isn = sp.find_isns(archive)
    same = np.equal.outer(np.array(isn.sources), np.array(isn.sources))
    noise = np.random.default_rng(0).random(same.shape) * 0.05
    values = 0.2 + 0.3 * same + (noise + noise.T)
    np.fill_diagonal(values, 1.0)
    isn.__dict__["pairs"] = type(isn.pairs)(isn.categories, values)
    ds = source_effect(isn, n_resamples=100, n_permutations=99)
    assert ds["effect"].sel(factor="source").item() == pytest.approx(0.3, abs=0.02)
    assert ds["effect_pvalue"].sel(factor="source").item() == 0.01
    assert ds["effect_pvalue"].sel(factor="category").item() > 0.01
    first = sentences(ds)[0]
    assert first.startswith("The Jaccard index depends more on source than on category: the effect of category is")
    assert f"that of source {ds['effect'].sel(factor='source').item():.3f}" in first


def test_the_verdict_follows_the_interval(tmp_path: Path) -> None:
    """The sentence says "more" only if the interval of the difference excludes 0."""
    ds = source_effect(sp.find_isns(opened(tmp_path / "a.zarr", ["natural", "synthetic"])), **FEW)
    ds["difference"], ds["difference_ci_low"], ds["difference_ci_high"] = ((), 0.02), ((), -0.01), ((), 0.04)
    assert sentences(ds)[0].startswith("It is unclear whether the Jaccard index depends more on")
    ds["difference_ci_low"] = ((), 0.01)
    assert sentences(ds)[0].startswith("The Jaccard index depends more on category than on")
    assert "0.020 (95 % CI 0.010–0.040)" in sentences(ds)[1]
    assert plot(ds).get_title() == "random"


def test_pairs_without_a_value_are_left_out(tmp_path: Path) -> None:
    """Observed and permuted means skip undefined pairs, and instructions without defined pairs."""
    isn = sp.find_isns(opened(tmp_path / "a.zarr", ["natural", "synthetic", "synthetic"]))
    values = isn.pairs.values.copy()
    empty = [0, 1, 2, 4, 5, 7, 8, 13, 16, 17, 19, 20]
    values[np.ix_(empty, empty)] = values[9] = values[:, 9] = np.nan
    isn.__dict__["pairs"] = PairMatrix(isn.categories, values)
    ds = source_effect(isn, **FEW)
    kinds, matrix = direct(isn)
    np.testing.assert_allclose(ds["value"], matrix, atol=1e-12)
    expected = [kinds[True, False] - kinds[False, False], kinds[False, True] - kinds[False, False]]
    np.testing.assert_allclose(ds["effect"], expected, atol=1e-12)
    known = np.flatnonzero(np.arange(len(isn)) != 9)
    few, sources = isn.take(known), np.array(isn.sources)[known]
    few.__dict__["pairs"] = PairMatrix(few.categories, values[np.ix_(known, known)])
    np.testing.assert_array_equal(source_effect(few, **FEW)["effect_pvalue"], ds["effect_pvalue"])
    strata = [np.flatnonzero(sources == source) for source in dict.fromkeys(sources.tolist())]
    codes, reached = np.array([few.labels.index(name) for name in few.names], dtype=np.int16), 0
    for labels in next(permuted_labels(codes, 50, 0, 50, None, strata)):
        permuted = few.take(np.arange(len(few)))
        permuted.__dict__["pairs"] = few.pairs
        permuted.categories[:] = [few.labels[code] for code in labels]  # type: ignore[index]
        kinds, _ = direct(permuted)
        reached += kinds[True, False] - kinds[False, False] >= expected[0] - 1e-12
    assert ds["effect_pvalue"].sel(factor="category").item() == (1 + reached) / 51


def test_one_source_is_no_comparison(tmp_path: Path) -> None:
    """With one source the effects cannot be separated; the error gives the reason."""
    with pytest.raises(NotComputableError, match="too few sources"):
        source_effect(sp.find_isns(opened(tmp_path / "a.zarr", ["natural"])), **FEW)


def test_halves_of_hexainst_are_the_sources(tmp_path: Path) -> None:
    """With HexaInst's sources, one for the synthetic half and many for the natural one, the halves are compared."""
    isn = sp.find_isns(opened(tmp_path / "a.zarr", ["hexainst", "flan:t0/x", "hexainst", "humaneval:1"]))
    ds = source_effect(isn, n_resamples=0, n_permutations=0)
    assert list(ds["group"].values[:2]) == ["CLS / synthetic", "CLS / natural"]
    assert "effect_ci_low" not in ds
    assert "effect_pvalue" not in ds
