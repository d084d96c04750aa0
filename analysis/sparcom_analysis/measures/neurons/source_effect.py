"""Whether category or source explains more of the similarity of instructions: the control that the paper's design has.

The paper draws each category half from synthetic and half from natural instructions and reports no comparison. Pairs of
two different instructions are of four kinds: same or different category, same or different source. Effects are
differences of means against the pairs that share neither:

    category effect   same category, different source   minus   neither
    source effect     different category, same source   minus   neither

A mean over a kind is the mean of its cells (group × group), each counting the same, so unequal groups do not matter. In
HexaInst, whose natural half has sources of its own per category, "source" is the half: synthetic or natural.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.instructions import SYNTHETIC, group_names
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.measure import OURS, Measure, NotComputableError, bounds, dataset
from sparcom_analysis.measures.text import decimal, interval, neurons_of, p_value
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import Interval, percentiles, resampled_cells, resamples_for
from sparcom_analysis.resampling.pairs import PairMatrix
from sparcom_analysis.resampling.permutation import cell_means

KINDS = ("same category, same source", "same category", "same source", "neither")
FACTORS = ("category", "source")
BATCH = 250  # permutations in hand
MAX_PERMUTATIONS = 999  # of each label: two more tests as long as those of similarity would double its time


def source_effect(subject: IsnSets | ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the similarity of every two groups of category and source, and both effects.

    Args:
        subject: ISN sets (Jaccard index) or expert counts (Pearson correlation) with two categories and two sources.
        **changes: `n_resamples`, `confidence_level`, `n_permutations`, `seed`.

    Returns:
        `value`, `ci_low`, `ci_high` (group, group_2), without pairs of an instruction with itself; `kind_value` (kind);
        `effect`, `effect_ci_low`, `effect_ci_high`, `effect_pvalue` (factor), one-sided by permuting one label within
        the other; `difference`, `difference_ci_low`, `difference_ci_high`: category effect minus source effect.

    Raises:
        NotComputableError: there are no two categories and two sources that can be told apart.
    """
    subject = subject.with_options(**changes)
    options = subject.options
    source = "half" if set(subject.sources) & set(SYNTHETIC) else "source"
    both = _names(subject, ("category", source))
    columns = {"category": _names(subject, ("category",)), "source": _names(subject, (source,))}
    pairs = subject.pairs.named(both)
    first = [both.index(label) for label in dict.fromkeys(both)]
    cells = _Cells(*(np.array([columns[name][k] for k in first], dtype=object) for name in FACTORS))
    value = pairs.means()[1]
    kinds, effects = cells.kinds(value), cells.effects(value)
    if np.isnan(effects).any():
        raise NotComputableError(
            "Category and source are told apart where pairs exist that share one and not the other; the instructions "
            "have too few sources or categories for that."
        )
    variables: dict[str, Any] = {
        "value": (("group", "group_2"), value, {"long_name": _index(subject)}),
        "kind_value": ("kind", kinds),
        "effect": ("factor", effects),
        "difference": ((), effects[0] - effects[1]),
    }
    if (resamples := resamples_for(both, options)) is not None:
        drawn = np.full((len(resamples), *value.shape), np.nan)
        for a, b, means in resampled_cells(pairs, resamples):
            drawn[:, a, b] = drawn[:, b, a] = means[1]
        level = options.confidence_level
        draws = cells.effects(drawn)
        variables |= bounds("", ("group", "group_2"), Interval(*percentiles(drawn, level)))
        variables |= bounds(
            "kind_", ("kind",), Interval(*percentiles(np.array([cells.kinds(one) for one in drawn]), level))
        )
        variables |= bounds("effect_", ("factor",), Interval(*percentiles(draws, level)))
        variables |= bounds("difference_", (), Interval(*percentiles(draws[:, 0] - draws[:, 1], level)))
    permutations = min(options.n_permutations, MAX_PERMUTATIONS)
    if permutations:
        reduced = Options.of(options, n_permutations=permutations)
        variables["effect_pvalue"] = ("factor", _pvalues(pairs, cells, effects, columns, reduced, progress))
    return dataset(
        subject,
        variables,
        {"group": pairs.labels, "group_2": pairs.labels, "kind": list(KINDS), "factor": list(FACTORS)},
        n_permutations=permutations or None,
    )


def _names(subject: IsnSets | ExpertCounts, by: tuple[str, ...]) -> list[str]:
    return group_names(subject.archive, subject.instruction, Options.of(subject.options, group_by=by))


class _Cells:
    """Which kind of pairs each cell of groups holds. category, source: of each of g groups."""

    def __init__(self, category: NDArray[Any], source: NDArray[Any]) -> None:
        same = category[:, None] == category[None], source[:, None] == source[None]
        self.masks = [same[0] & same[1], same[0] & ~same[1], ~same[0] & same[1], ~same[0] & ~same[1]]

    def kinds(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of the cells of each kind, NaN left out: float64 (…, 4) of (…, g, g)."""
        cells = [values[..., mask] for mask in self.masks]
        known = [(~np.isnan(one)).sum(axis=-1) for one in cells]
        sums = [np.nansum(one, axis=-1) for one in cells]
        return np.stack(
            [np.where(n > 0, one / np.maximum(n, 1), np.nan) for one, n in zip(sums, known, strict=True)], -1
        )

    def effects(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the category effect and the source effect: float64 (…, 2)."""
        kinds = self.kinds(values)
        effects: NDArray[np.float64] = kinds[..., 1:3] - kinds[..., 3:]
        return effects


def _pvalues(
    pairs: PairMatrix,
    cells: _Cells,
    effects: NDArray[np.float64],
    columns: dict[str, list[str]],
    options: Options,
    progress: Progress | None,
) -> list[float]:
    """Return p of each effect: one label permuted among the instructions that share the other."""
    found, total = [], 2 * options.n_permutations
    for place, held in enumerate(reversed(FACTORS)):
        reached, done = 0, place * options.n_permutations
        strata = [np.flatnonzero([name == other for name in columns[held]]) for other in dict.fromkeys(columns[held])]
        for labels in _permuted(pairs.codes.astype(np.int16), strata, options):
            means = cell_means(pairs, labels, len(pairs.labels))
            reached += int((cells.effects(means)[:, place] >= effects[place] - 1e-12).sum())
            done += len(labels)
            if progress is not None:
                progress(done, total)
        found.append((1 + reached) / (1 + options.n_permutations))
    return found


def _permuted(
    codes: NDArray[np.int16], strata: list[NDArray[np.intp]], options: Options
) -> Iterator[NDArray[np.int16]]:
    """Yield group codes permuted within strata: int16 (batch, n)."""
    rng = np.random.Generator(np.random.PCG64(options.seed))
    for first in range(0, options.n_permutations, BATCH):
        labels = np.repeat(codes[None], min(BATCH, options.n_permutations - first), axis=0)
        for members in strata:
            labels[:, members] = rng.permuted(labels[:, members], axis=1)
        yield labels


def _index(subject: IsnSets | ExpertCounts) -> str:
    return "mean Jaccard index" if isinstance(subject, IsnSets) else "mean Pearson correlation"


def sentences(ds: xr.Dataset) -> list[str]:
    """Return which of the two explains more, and both effects."""
    one, other = (ds.sel(factor=name) for name in FACTORS)
    index = str(ds["value"].attrs["long_name"]).removeprefix("mean ")
    index += f" ({neurons_of(ds)})" if index.startswith("J") else ""
    more, less = FACTORS if float(ds["difference"]) >= 0 else FACTORS[::-1]
    if "difference_ci_low" in ds and float(ds["difference_ci_low"]) <= 0 <= float(ds["difference_ci_high"]):
        verdict = f"Category and source explain similar amounts of the {index}"
    else:
        verdict = f"The {more} of an instruction explains more of the {index} than its {less}"
    return [
        f"{verdict}: sharing the category adds {_effect(one)}, sharing the source adds {_effect(other)}.",
        f"The difference of the two effects is {decimal(float(ds['difference']))}{interval(ds, prefix='difference_')}.",
    ]


def _effect(one: xr.Dataset) -> str:
    p = f", {p_value(float(one['effect_pvalue']))}" if "effect_pvalue" in one else ""
    ci = interval(one, prefix="effect_")
    return f"{decimal(float(one['effect']))}" + (f"{ci[:-1]}{p})" if ci else f" ({p[2:]})" if p else "")


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    name = str(ds["value"].attrs["long_name"])
    return (
        f"{name[0].upper()}{name[1:]} of every two groups of category and source, {ds.attrs['model']} (ours). Pairs of "
        "an instruction with itself are left out."
    )


def plot(ds: xr.Dataset, ax: Any = None, **style: Any) -> Any:
    """Draw the groups as a heat map into `ax`; style: see `plotting.heatmap`."""
    labels = [str(name) for name in ds["group"].values]
    style = {"label": str(ds["value"].attrs["long_name"]), "title": ds.attrs["model"]} | style
    return plotting.heatmap(ds["value"].values, labels, labels, ax=ax, **style)


def _measure(name: str, title: str, needs: Any) -> Measure:
    return Measure(
        name=name,
        title=title,
        equation=OURS,
        needs=needs,
        definition=(
            "How much more similar two instructions are when they share the category but not the source, or the source "
            "but not the category, than when they share neither."
        ),
        compute=source_effect,
        sentences=sentences,
        caption=caption,
        plot=plot,
    )


MEASURE = _measure("source_effect", "Category or source: neurons", "isn")
ROUTING_MEASURE = _measure("routing_source_effect", "Category or source: experts", "experts")
