"""Count members under resampled instructions (intervals) and permuted labels (null distribution).

Neurons that no draw can make members (`Members.possible`) are skipped; the rest are repacked and counted exactly.
Intervals are centered, because draws with replacement push more neurons above the threshold than below it. A category
of one instruction has no interval; nor has any number that depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.compiled import pack_at_least
from sparcom_analysis.measures.general_unique.members import Members, Membership
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import centered_interval, resampled_rows
from sparcom_analysis.resampling.permutation import holm, permuted_rows, pvalue

Numbers = NDArray[np.float64]


def count_members(
    membership: Membership, members: Members, options: Options, progress: Progress | None = None
) -> dict[str, Numbers]:
    """Return the numbers of members of c categories, with intervals and permutation tests.

    Returns:
        `value`, `ci_low`, `ci_high`, `null_mean`: float64 (2c + 2, layer + 1). Rows: members of each category, members
        unique to each, general, common (NaN but for members with one category). The last column sums over layers.
        `fraction_value`, `fraction_ci_low`, `fraction_ci_high`: float64 (2, c), general and unique members divided by
        all members of the category; NaN if it has none.
        `pvalue`, `pvalue_adjusted`: float64 (c,), test of the number of unique members; Holm's correction.
    """
    c, codes, level = len(members.needed), membership.codes, options.confidence_level
    n_resamples, n_permutations = options.n_resamples, options.n_permutations if c > 1 else 0
    draws = _Draws(membership, members.needed, members.possible[0])

    def count(draws: _Draws, choices: Iterable[list[NDArray[np.intp]]], before: int) -> Numbers:
        counts = []
        for rows in choices:
            counts.append(draws.counts(rows))
            if progress is not None:
                progress(before + len(counts), n_resamples + n_permutations)
        return np.array(counts)

    value = draws.counts(membership.rows)
    if c == 1:
        value[1:] = np.nan  # general and unique need two categories
    found = {"value": value, "fraction_value": _fractions(value)}
    if n_resamples:
        drawn, several = count(draws, resampled_rows(codes, n_resamples, options.seed), 0), np.bincount(codes) > 1
        ends = centered_interval(value, drawn, level)
        parts = centered_interval(_fractions(value), _fractions(drawn), level, upper=1.0)
        known = np.append(several, [several.all()] * (c + 2))[:, None]
        for end in ("low", "high"):
            found[f"ci_{end}"] = np.where(known, getattr(ends, end), np.nan)
            found[f"fraction_ci_{end}"] = np.where(several.all(), getattr(parts, end), np.nan)
    if n_permutations:
        draws = _Draws(membership, members.needed, members.possible[1])
        drawn = count(draws, permuted_rows(codes, n_permutations, options.seed), n_resamples)
        reached = (drawn[:, c : 2 * c, -1] >= value[c : 2 * c, -1]).sum(axis=0)
        found |= {"null_mean": drawn.mean(axis=0), "pvalue": pvalue(reached, n_permutations)}
        found["pvalue_adjusted"] = holm(found["pvalue"])
    return found


def _fractions(value: Numbers) -> Numbers:
    """Divide general and unique members by all members: float64 (…, 2, c) from (…, 2c + 2, layer + 1)."""
    totals, c = value[..., -1], value.shape[-2] // 2 - 1
    general, unique = totals[..., 2 * c : 2 * c + 1], totals[..., c : 2 * c]
    parts = np.stack([general + 0 * unique, unique], axis=-2)
    return np.asarray(parts / np.where(totals > 0, totals, np.nan)[..., None, :c])


class _Draws:
    """Bits of the possible members: uint64 (n, word). Layer j has words borders[j] to borders[j + 1]."""

    def __init__(self, membership: Membership, needed: NDArray[np.int64], possible: NDArray[np.bool_]) -> None:
        """Pack possible members, each layer in whole words. `needed`: instructions required per category."""
        flat = np.flatnonzero(possible)
        layer = flat // possible.shape[1]
        kept = np.bincount(layer, minlength=membership.layers)
        self.needed, self.borders = needed, np.append(0, (-(-kept // 64)).cumsum())
        place = np.arange(len(layer)) + (64 * self.borders[:-1] - kept.cumsum() + kept)[layer]
        self.bits = np.zeros((len(membership.codes), int(self.borders[-1])), dtype=np.uint64)
        spread = np.zeros(64 * self.bits.shape[1], dtype=np.uint8)
        for k, packed in enumerate(self.bits):
            held = membership.sets.rows(k, k + 1)[0].view(np.uint8)[: possible.size // 8]
            spread[place] = np.unpackbits(held, bitorder="little")[flat]
            packed[:] = np.packbits(spread, bitorder="little").view(np.uint64)

    def counts(self, rows: Sequence[NDArray[np.intp]]) -> Numbers:
        """Return `value` of `count_members` for these instructions per category; repeats count repeatedly."""
        held = np.zeros((len(rows), self.bits.shape[1]), dtype=np.uint64)
        for some, least, words in zip(rows, self.needed.tolist(), held, strict=True):
            counts = np.zeros((1, 64 * len(words)), dtype=np.uint32)
            add_bit_counts(self.bits[some].view(np.uint8), counts[0])
            pack_at_least(counts, least, words.view(np.uint8)[None], np.zeros(1, np.int64))
        once, several = np.zeros((2, held.shape[1]), dtype=np.uint64)
        for words in held:
            several |= once & words
            once |= words
        general = np.bitwise_and.reduce(held) & several
        bits = np.bitwise_count(np.concatenate([held, held & ~several, [general], [several & ~general]]))
        before = np.pad(bits.cumsum(axis=1, dtype=np.int64), ((0, 0), (1, 0)))
        layers = np.diff(before[:, self.borders], axis=1)
        return np.concatenate([layers, layers.sum(axis=1, keepdims=True)], axis=1, dtype=np.float64)
