"""Means per group of one value per instruction, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.resampling.bootstrap import Interval, Resamples, mean_intervals
from sparcom_analysis.resampling.pairs import Floats, ratio


@dataclass(frozen=True, slots=True, eq=False)
class GroupMeans:
    """Means of values (n, …); NaN where no value is defined.

    Attributes:
        labels: c groups in order of first appearance. mean: float64 (c, …). overall: float64 (…), all instructions.
        counted, undefined: int64 (c, …), instructions with a defined and an undefined value.
        interval, overall_interval: intervals of `mean` and `overall`; None without resamples.
    """

    labels: list[str]
    mean: Floats
    overall: Floats
    counted: NDArray[np.int64]
    undefined: NDArray[np.int64]
    interval: Interval | None = None
    overall_interval: Interval | None = None


def group_means(values: NDArray[Any], categories: Sequence[str], resamples: Resamples | None = None) -> GroupMeans:
    """Return the mean of each group and over all instructions, ignoring NaN.

    Args:
        values: numbers (n, …), one entry per instruction.
        resamples: drawn from the same categories, for intervals.
    """
    labels, codes = category_labels(categories), category_codes(categories)
    groups = [values[codes == code] for code in range(len(labels))]
    sums = np.array([np.nansum(group, axis=0, dtype=np.float64) for group in groups])
    undefined = np.array([np.isnan(group).sum(axis=0) for group in groups])
    counted = np.array([len(group) for group in groups]).reshape(-1, *[1] * (values.ndim - 1)) - undefined
    overall = ratio(sums.sum(axis=0), counted.sum(axis=0))
    ends = (None, None) if resamples is None else mean_intervals(values, resamples)
    return GroupMeans(labels, ratio(sums, counted), overall, counted, undefined, *ends)
