"""How far the choices that tuning moves would vary with other instructions: intervals of `ExpertShift.moved`.

    moved = ½ Σ_e |mean_I (f_tuned(I) − f_base(I))|, by category and layer

1. Draw matched instructions with replacement within their categories; an instruction brings its frequencies in both
   models, so base and tuned are of the same draws.
2. Compute moved of each draw.
3. The interval is moved itself plus the percentiles of the draws' deviations from the draws' own mean, at least 0, as
   for general and unique components.

Why not the draws' percentiles themselves: an absolute value only rises with noise, and a draw has the noise of the
instructions and that of drawing. Simulated with 60 experts of which nothing moves and 20 instructions, moved is 0.27 by
noise alone, and the percentiles lay above it in all of 200 runs. The spread of the draws is kept, their shift is not.
What is covered is what as many other instructions would give on average, noise included, not the shift that infinitely
many would show: moved of few instructions is above 0 where nothing moved, and its interval with it.

Means are sums of whole numbers (see `bootstrap`), added up expert by expert: blocks and cores change no digit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.experts import InstructionExperts
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.statistics import bootstrap
from sparcom_analysis.statistics.bootstrap import Interval, Resamples, percentiles, weighted_means
from sparcom_analysis.tuned.shift import expert_shift
from sparcom_analysis.tuned.twins import Twins, match_twins


def moved_intervals(
    base: InstructionExperts, tuned: InstructionExperts, resamples: Resamples, twins: Twins | None = None
) -> Interval:
    """Intervals of `expert_shift(base, tuned, twins).moved`: float64 (category, layer), NaN for one instruction.

    Args:
        resamples: drawn from the categories of the matched instructions, `twins.categories`.
        twins: which belong together, where `match_twins` has found it already.

    Raises:
        As `expert_shift` does.
    """
    found = match_twins(base, tuned) if twins is None else twins
    resamples.check(found.categories)
    moved = expert_shift(base, tuned, found).moved
    ends = [_ends(_drawn(base, tuned, found, resamples, layer), resamples) for layer in range(moved.shape[1])]
    low, high = (np.stack(side, axis=1) for side in zip(*ends, strict=True))
    return Interval(np.maximum(moved + np.minimum(low, 0), 0), moved + np.maximum(high, 0))


def _drawn(
    base: InstructionExperts, tuned: InstructionExperts, twins: Twins, resamples: Resamples, layer: int
) -> NDArray[np.float64]:
    """Moved of one layer in every draw: float64 (resample, category), NaN for a category of one instruction."""
    codes, count = category_codes(twins.categories), len(category_labels(twins.categories))
    total = np.zeros((len(resamples), count))
    step = max(1, bootstrap.BLOCK_VALUES // (len(resamples) * (count + 1)))
    for first in range(0, base.experts, step):
        part = slice(first, first + step)
        after = tuned.counts[twins.tuned, layer, part] / tuned.tokens[twins.tuned, None]
        before = base.counts[twins.base, layer, part] / base.tokens[twins.base, None]
        means = np.abs(weighted_means(after - before, resamples.weights, codes, count)[:, :count])
        for expert in range(means.shape[2]):
            total += means[:, :, expert]
    return total / 2


def _ends(drawn: NDArray[np.float64], resamples: Resamples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of the deviations from the draws' mean, by category."""
    return percentiles(drawn - drawn.mean(axis=0), resamples.confidence)
