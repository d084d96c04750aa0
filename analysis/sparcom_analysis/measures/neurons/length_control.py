"""Length control for similarity: instructions subsampled to equal length, next to all tokens (ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets, find_isns
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.measure import OURS, bounds, dataset, measure
from sparcom_analysis.measures.pair_means import SELF_PAIRS, PairSubject, shown
from sparcom_analysis.measures.text import among, decimal, interval
from sparcom_analysis.resampling.bootstrap import Interval, pair_intervals, resamples_for
from sparcom_analysis.resampling.ranks import rank_correlation
from sparcom_analysis.resampling.subsampling import matrix_change, subsampled

VERSIONS = ["plain", "equal_length", "difference"]
CELLS = ("version", "self_pairs", "category", "category_2")
SAME_ORDER, CHANGED_ORDER = 0.9, 0.5  # rank correlations


def length_control(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Jaccard index of each pair of categories, over all tokens and subsampled to equal length.

    Args:
        isn: ISN sets over all tokens; their archive is read once more.
        **changes: `equal_length`, `equal_length_tokens`, `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        The variables of `length_control_dataset`, and `mean_size`, `length_correlation` (version): mean set size, and
        Spearman's rank correlation of set size with the original number of tokens.

    Raises:
        NotComputableError, UnsupportedArchiveError, IncompleteArchiveError: see `subsampled`.
    """
    plain = isn.with_options(**changes)
    given: dict[str, Any] = {"population": plain.population.name, "progress": progress}
    equal = subsampled(plain, lambda draw: find_isns(plain.archive, plain.options, draw=draw, **given))
    both = np.isin(plain.instruction, equal.instruction)
    tokens, sizes = plain.tokens[both], (plain.sizes[both], equal.sizes)
    means = [float(size.mean()) for size in sizes]
    variables = {
        "mean_size": ("version", [*means, means[1] - means[0]], {"long_name": "mean set size", "units": "neurons"}),
        "length_correlation": ("version", [*(rank_correlation(tokens, size) for size in sizes), np.nan]),
    }
    return length_control_dataset(plain, equal, "mean Jaccard index", MEASURE.name, variables)


def length_control_dataset(
    plain: PairSubject, equal: PairSubject, long_name: str, measure: str, variables: dict[str, Any]
) -> xr.Dataset:
    """Return a pair measure, plain and subsampled, and their difference, over the instructions of `equal`.

    Variables:
        value, ci_low, ci_high (version, self_pairs, category, category_2): all versions use the same resamples.
        rank_correlation, mean_change, largest_change, largest_change_category, largest_change_category_2,
        compared_rows (self_pairs), diagonal_largest (self_pairs, version): see `matrix_change`.
        used, too_short (category): instructions that are long enough, and too short.
    """
    both = np.isin(plain.instruction, equal.instruction)
    pairs = plain.pairs if both.all() else plain.pairs.take(np.flatnonzero(both)), equal.pairs
    groups, labels = list(dict.fromkeys(plain.categories)), plain.labels
    kept = [groups.index(name) for name in dict.fromkeys(equal.categories)]

    def aligned(matrices: Any) -> Any:
        """Expand (version, self_pairs, c', c') to all categories; missing categories are NaN."""
        full = np.full((3, 2, len(groups), len(groups)), np.nan)
        full[:, :, np.array(kept)[:, None], kept] = np.asarray(matrices)
        return full

    means = [np.stack(one.means()) for one in pairs]
    value = aligned([*means, means[1] - means[0]])
    found = {"value": (CELLS, value, {"long_name": long_name}), **variables}
    if (resamples := resamples_for(equal.categories, equal.options)) is not None:
        low, high = zip(*pair_intervals(resamples, *pairs), strict=True)
        found |= bounds("", CELLS, Interval(aligned(low), aligned(high)))
    changes = [matrix_change(*value[:2, k]) for k in range(2)]
    for name in ("rank_correlation", "mean_change", "largest_change", "compared_rows"):
        found[name] = ("self_pairs", [one[name] for one in changes])
    for k, name in enumerate(("largest_change_category", "largest_change_category_2")):
        found[name] = ("self_pairs", [[*labels, ""][one["cell"][k]] for one in changes])  # -1 is no cell
    members, used = (np.bincount(codes, minlength=len(groups)) for codes in (plain.codes, plain.codes[both]))
    found |= {"used": ("category", used), "too_short": ("category", members - used)}
    found["diagonal_largest"] = (("self_pairs", "version"), [(*one["diagonal_largest"], np.nan) for one in changes])
    coords = {"version": VERSIONS, "self_pairs": SELF_PAIRS, "category": labels, "category_2": labels}
    return dataset(equal, found, coords, self_pairs_shown=equal.options.self_pairs, measure=measure)


def length_control_sentences(ds: xr.Dataset, index: str) -> list[str]:
    """Return sentences on the rank order of category pairs and the changes; index: "mean Jaccard index"."""
    one = shown(ds)
    rho, largest = float(one["rank_correlation"]), float(one["largest_change"])
    tokens = f"Subsampled to equal length ({ds.attrs['drawn_tokens']:,} tokens per instruction)"
    if np.isnan(largest):
        return [f"{tokens}, no pair of categories has a {index} to compare."]
    kept = "preserved" if rho >= SAME_ORDER else "partly preserved" if rho >= CHANGED_ORDER else "not preserved"
    order = f"the order of category pairs by {index} is {kept} (rank correlation {decimal(rho, 2)})"
    few = f"too few category pairs differ to compare their order by {index}"
    found = [f"{tokens}, {few if np.isnan(rho) else order}."]
    first, second = (one[f"largest_change_category{end}"].item() for end in ("", "_2"))
    where = f"within {first}" if first == second else f"between {first} and {second}"
    cell = one.sel(version="difference", category=first, category_2=second)
    found.append(
        f"The {index} changes by {signed(float(one['mean_change']))} on average, most {where} "
        f"({signed(largest)}{interval(cell).replace(' (', '; ').removesuffix(')')})."
        if largest
        else f"No {index} changes."
    )
    if short := int(ds["too_short"].sum()):
        found.append(f"{short:,} {'instruction is' if short == 1 else 'instructions are'} too short and left out.")
    return found


def sentences(ds: xr.Dataset) -> list[str]:
    plain, equal = (float(ds["length_correlation"].sel(version=version)) for version in VERSIONS[:2])
    size = (
        "All instructions have the same length, or all sets the same size, so set size does not depend on length."
        if np.isnan(plain)
        else f"The rank correlation of set size and number of tokens is {signed(plain, 2)}; subsampled to equal "
        f"length, {'all sets have the same size' if np.isnan(equal) else f'it is {signed(equal, 2)}'}."
    )
    return [*length_control_sentences(ds, f"mean Jaccard index of ISN sets{among(ds)}"), size]


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign."""
    return ("+" if value > 0 else "") + decimal(value, digits)


def caption(ds: xr.Dataset) -> str:
    pairs = "included" if ds.attrs["self_pairs_shown"] else "omitted"
    return (
        f"M{str(ds['value'].attrs['long_name'])[1:]} for each pair of categories, {ds.attrs['model']}, with all "
        f"tokens, with {ds.attrs['drawn_tokens']:,} sampled tokens per instruction, and the difference. All panels use "
        f"the same {ds.attrs['instructions']:,} instructions. Pairs of an instruction with itself are {pairs}. "
        "Bold with an asterisk: the interval of the difference excludes 0."
    )


def plot(ds: xr.Dataset, ax: Any = None, *, version: str = "equal_length", **style: Any) -> Any:
    """Draw one version of the matrix as a heat map into `ax`: "plain", "equal_length" or "difference"."""
    one = shown(ds).sel(version=version)
    drawn = f"{ds.attrs['drawn_tokens']:,} tokens"
    titles = {"plain": "all tokens", "equal_length": drawn, "difference": f"{drawn} − all tokens"}
    held = {"label": ds["value"].attrs["long_name"], "title": titles[version]}
    if version == "difference":
        marks = (one["ci_low"].values > 0) | (one["ci_high"].values < 0) if "ci_low" in one else None
        held |= {"label": f"difference of {held['label']}", "center": 0.0, "marks": marks}
    return plotting.heatmap(one["value"].values, names(ds), names(ds), ax=ax, **(held | style))


def figure(ds: xr.Dataset) -> Any:
    """Draw three panels: both versions on one color scale, and the difference."""
    found, axes = plotting.panels(3)
    for version, ax in zip(VERSIONS, axes, strict=True):
        plot(ds, ax, version=version)
    plotting.share([axes[:2]])
    return found


MEASURE = measure(
    length_control,
    "Similarity with equally long instructions",
    OURS,
    "isn",
    "Equation 10 with equally many sampled tokens per instruction, and with all tokens of the same instructions. The "
    "difference shows how the similarities depend on the number of tokens.",
)
