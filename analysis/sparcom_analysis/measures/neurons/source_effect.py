"""Separate the effects of category and source on the similarity of instructions (ours).

Pairs of two different instructions share the category, the source, both or neither. The effect of category is the mean
over pairs that share only the category, minus the mean over pairs that share neither; likewise for source. Every cell
(group × group) has equal weight, so group sizes do not matter. In HexaInst, "source" is the half (natural or
synthetic), because each category has its own natural sources.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.instructions import SYNTHETIC, group_names
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.measure import OURS, NotComputableError, bounds, dataset, measure
from sparcom_analysis.measures.text import TIE, among, decimal, interval, p_value
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import percentiles, resampled_cells, resamples_for
from sparcom_analysis.resampling.pairs import Floats, PairMatrix, ratio
from sparcom_analysis.resampling.permutation import cell_means, permuted_labels, pvalue

CELLS = ("group", "group_2")
KINDS = ("same category, same source", "same category", "same source", "neither")
FACTORS = ("category", "source")
BATCH = 250  # permutations per batch
MAX_PERMUTATIONS = 999  # per label, because two more tests at full size would double the time


def source_effect(subject: IsnSets | ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the similarity of each pair of category × source groups, and both effects.

    Args:
        subject: ISN sets (Jaccard index) or expert counts (Pearson correlation) with two categories and two sources.
        **changes: `n_resamples`, `confidence_level`, `n_permutations`, `seed`.

    Returns:
        `value`, `ci_low`, `ci_high` (group, group_2), without pairs of an instruction with itself; `kind_value` (kind);
        `effect`, `effect_ci_low`, `effect_ci_high`, `effect_pvalue` (factor), a one-sided test that permutes one label
        within levels of the other; `difference`, `difference_ci_low`, `difference_ci_high`: category effect minus
        source effect.

    Raises:
        NotComputableError: the effects of category and source cannot be separated.
    """
    subject = subject.with_options(**changes)
    options, index = subject.options, "Jaccard index" if isinstance(subject, IsnSets) else "Pearson correlation"
    source = "half" if set(subject.sources) & set(SYNTHETIC) else "source"
    both = _groups(subject, "category", source)
    columns = [np.array(_groups(subject, name)) for name in ("category", source)]
    pairs = PairMatrix(both, subject.pairs.values)
    first = [both.index(label) for label in dict.fromkeys(both)]
    differ = [column[first, None] != column[first] for column in columns]
    kind = 2 * differ[0] + differ[1]  # of each cell, an index into KINDS
    value = pairs.means()[1]
    kinds = _kind_means(value, kind)
    effects = kinds[1:3] - kinds[3]
    if np.isnan(effects).any():
        raise NotComputableError(
            "The effects of category and source cannot be separated: these instructions have too few sources or "
            "categories."
        )
    variables: dict[str, Any] = {
        "value": (CELLS, value, {"long_name": f"mean {index}"}),
        "kind_value": ("kind", kinds),
        "effect": ("factor", effects),
        "difference": ((), effects[0] - effects[1]),
    }
    if (resamples := resamples_for(both, options)) is not None:
        cells = np.full((len(resamples.weights), *value.shape), np.nan)
        for a, b, means in resampled_cells(pairs, resamples):
            cells[:, a, b] = cells[:, b, a] = means[:, 1]
        drawn, level = _kind_means(cells, kind), options.confidence_level
        deltas = drawn[:, 1:3] - drawn[:, 3:]
        variables |= bounds("", CELLS, percentiles(cells, level))
        variables |= bounds("kind_", ("kind",), percentiles(drawn, level))
        variables |= bounds("effect_", ("factor",), percentiles(deltas, level))
        variables |= bounds("difference_", (), percentiles(deltas[:, 0] - deltas[:, 1], level))
    if permutations := min(options.n_permutations, MAX_PERMUTATIONS):
        tested = Options.of(options, n_permutations=permutations)
        variables["effect_pvalue"] = ("factor", _pvalues(pairs, kind, effects, columns, tested, progress))
    return dataset(
        subject,
        variables,
        {"group": pairs.labels, "group_2": pairs.labels, "kind": list(KINDS), "factor": list(FACTORS)},
        n_permutations=permutations or None,
        measure=(MEASURE if isinstance(subject, IsnSets) else ROUTING_MEASURE).name,
    )


def _groups(subject: IsnSets | ExpertCounts, *by: str) -> list[str]:
    return group_names(subject.archive, subject.instruction, Options.of(subject.options, group_by=by))


def _kind_means(values: Floats, kind: NDArray[np.intp]) -> Floats:
    """Return the mean of the cells of each kind, ignoring NaN: float64 (…, 4) from (…, g, g)."""
    cells = [values[..., kind == one] for one in range(len(KINDS))]
    means = [ratio(np.nansum(held, axis=-1), (~np.isnan(held)).sum(axis=-1)) for held in cells]
    return np.stack(means, axis=-1)


def _pvalues(
    pairs: PairMatrix, kind: NDArray[np.intp], effects: Floats, columns: Any, options: Options, progress: Any
) -> list[float]:
    """Return the p-value of each effect; its label is permuted among instructions that share the other label."""
    observed, kept = pairs.codes[pairs.defined].astype(np.int16), pairs.with_values()
    total, found = options.n_permutations, []
    for place, held in enumerate(column[pairs.defined] for column in columns[::-1]):
        strata = [np.flatnonzero(held == name) for name in dict.fromkeys(held.tolist())]
        report = progress and (lambda done, _, before=place * total: progress(before + done, 2 * total))
        reached = 0
        for labels in permuted_labels(observed, total, options.seed, BATCH, report, strata):
            means = _kind_means(cell_means(kept, labels, len(pairs.labels)), kind)
            reached += int((~(means[:, 1 + place] - means[:, 3] < effects[place] - TIE)).sum())
        found.append(float(pvalue(reached, total)))
    return found


def sentences(ds: xr.Dataset) -> list[str]:
    one, other = (ds.sel(factor=name) for name in FACTORS)
    index = str(ds["value"].attrs["long_name"]).removeprefix("mean ")
    index += f"{among(ds)}" if index.startswith("J") else ""
    more, less = FACTORS if float(ds["difference"]) >= 0 else FACTORS[::-1]
    verdict = f"The {index} depends more on {more} than on {less}"
    if "difference_ci_low" in ds and float(ds["difference_ci_low"]) <= 0 <= float(ds["difference_ci_high"]):
        verdict = f"It is unclear whether the {index} depends more on category or on source"
    return [
        f"{verdict}: the effect of category is {_effect(one)}, that of source {_effect(other)}.",
        f"The category effect minus the source effect is {decimal(float(ds['difference']))}"
        f"{interval(ds, prefix='difference_')}.",
    ]


def _effect(one: xr.Dataset) -> str:
    p = f", {p_value(float(one['effect_pvalue']))}" if "effect_pvalue" in one else ""
    ci = interval(one, prefix="effect_")
    return f"{decimal(float(one['effect']))}" + (f"{ci[:-1]}{p})" if ci else f" ({p[2:]})" if p else "")


def caption(ds: xr.Dataset) -> str:
    return (
        f"M{ds['value'].attrs['long_name'][1:]} for each pair of category × source groups, {ds.attrs['model']} "
        "(ours). Pairs of an instruction with itself are omitted."
    )


def plot(ds: xr.Dataset, ax: Any = None, **style: Any) -> Any:
    """Draw the groups as a heat map into `ax`; style: see `plotting.heatmap`."""
    held = {"label": ds["value"].attrs["long_name"], "title": ds.attrs["model"]} | style
    return plotting.heatmap(ds["value"].values, names(ds, "group"), names(ds, "group"), ax=ax, **held)


MEASURE = measure(
    source_effect,
    "Category or source: neurons",
    OURS,
    "isn",
    "The mean similarity of pairs of instructions that share only the category (or only the source), minus that of "
    "pairs that share neither.",
)
ROUTING_MEASURE = replace(MEASURE, name="routing_source_effect", title="Category or source: experts", needs="experts")
