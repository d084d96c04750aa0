"""Counts members for other choices of instructions: intervals, and the null distribution of permuted labels.

Most neurons are in so few instructions that no draw makes them members (`Members.possible`). They are left out once,
and the rest is packed again, so that a draw reads a fraction of the sets. What is not left out is counted exactly.

Intervals are centered (see `centered_interval`): a threshold decides who is a member, and draws with replacement carry
more over it than they take away. A category of one instruction has no interval, nor have numbers it has a part in.
The threshold also makes unique members out of nothing; hence the null distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """Return the numbers of members of c categories, and what resampling says of them.

    Returns:
        `value`, `ci_low`, `ci_high`, `null_mean`: float64 (2c + 2, layer + 1): members of each category, those unique
        to each, general, common; the last layer is all layers together. With one category all but its members are NaN.
        `fraction_value`, `fraction_ci_low`, `fraction_ci_high`: float64 (2, c), general and unique members over all
        members of the category; NaN if it has none.
        `pvalue`, `pvalue_adjusted`: float64 (c,), that as many are unique under permuted labels; Holm's correction.
    """
    c, codes, seed = len(members.needed), membership.codes, options.seed
    n_resamples, n_permutations = options.n_resamples, options.n_permutations if c > 1 else 0
    draws = Draws.of(membership, members.needed, members.possible[0])

    def count(draws: Draws, choices: Iterable[list[NDArray[np.intp]]], before: int) -> Numbers:
        counts = []
        for done, rows in enumerate(choices, before + 1):
            counts.append(draws.counts(rows))
            if progress is not None:
                progress(done, n_resamples + n_permutations)
        return np.array(counts)

    value = draws.counts(membership.rows)
    if c == 1:
        value[1:] = np.nan  # one category has no other to be told from
    found = {"value": value, "fraction_value": _fractions(value)}
    if n_resamples:
        drawn, several = count(draws, resampled_rows(codes, n_resamples, seed), 0), np.bincount(codes) > 1
        ends = centered_interval(value, drawn, options.confidence_level)
        parts = centered_interval(_fractions(value), _fractions(drawn), options.confidence_level, upper=1.0)
        for end in ("low", "high"):
            known = np.concatenate([several, np.full(c + 2, several.all())])[:, None]
            found[f"ci_{end}"] = np.where(known, getattr(ends, end), np.nan)
            found[f"fraction_ci_{end}"] = np.where(several.all(), getattr(parts, end), np.nan)
    if n_permutations:
        draws = Draws.of(membership, members.needed, members.possible[1])
        drawn = count(draws, permuted_rows(codes, n_permutations, seed), n_resamples)
        reached = (drawn[:, c : 2 * c, -1] >= value[c : 2 * c, -1]).sum(axis=0)
        found |= {"null_mean": drawn.mean(axis=0), "pvalue": pvalue(reached, n_permutations)}
        found["pvalue_adjusted"] = holm(found["pvalue"])
    return found


def _fractions(value: Numbers) -> Numbers:
    """Return general and unique members over all members: float64 (…, 2, c) of (…, 2c + 2, layer + 1)."""
    totals, c = value[..., -1], value.shape[-2] // 2 - 1
    general, unique = totals[..., 2 * c : 2 * c + 1], totals[..., c : 2 * c]
    parts = np.stack([general + 0 * unique, unique], axis=-2)
    return np.asarray(parts / np.where(totals > 0, totals, np.nan)[..., None, :c])


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What a draw may count, as bits.

    Attributes:
        needed: int64 (c,), instructions of each category that a member must be in.
        bits: uint64 (n, word). borders: int64 (layer + 1,), words of layer j are borders[j] to borders[j + 1].
    """

    needed: NDArray[np.int64]
    bits: NDArray[np.uint64]
    borders: NDArray[np.int64]

    @classmethod
    def of(cls, membership: Membership, needed: NDArray[np.int64], possible: NDArray[np.bool_]) -> Draws:
        """Keep what is possible, each layer in whole words."""
        flat = np.flatnonzero(possible)
        layer = flat // possible.shape[1]
        kept = np.bincount(layer, minlength=membership.layers)
        borders = np.concatenate([[0], (-(-kept // 64)).cumsum()]).astype(np.int64)
        place = np.arange(len(layer)) + (64 * borders[:-1] - kept.cumsum() + kept)[layer]
        bits = np.zeros((len(membership.codes), int(borders[-1])), dtype=np.uint64)
        spread = np.zeros(64 * int(borders[-1]), dtype=np.uint8)
        for k in range(len(bits)):
            held = membership.sets.rows(k, k + 1)[0].view(np.uint8)[: possible.size // 8]
            spread[place] = np.unpackbits(held, bitorder="little")[flat]
            bits[k] = np.packbits(spread, bitorder="little").view(np.uint64)
        return cls(needed, bits, borders)

    def counts(self, rows: Sequence[NDArray[np.intp]]) -> Numbers:
        """Return `value` of `count_members` if each category has these instructions; twice drawn counts twice."""
        held = np.zeros((len(rows), self.bits.shape[1]), dtype=np.uint64)
        for code, some in enumerate(rows):
            counts = np.zeros(self.bits.shape[1] * 64, dtype=np.uint32)
            add_bit_counts(self.bits[some].view(np.uint8), counts)
            packed = held[code : code + 1].view(np.uint8)
            pack_at_least(counts[None], int(self.needed[code]), packed, np.zeros(1, np.int64))
        once, several = np.zeros((2, held.shape[1]), dtype=np.uint64)
        for words in held:
            several |= once & words
            once |= words
        general = np.bitwise_and.reduce(held) & several
        words = np.concatenate([held, held & ~several, [general], [several & ~general]])
        before = np.zeros((len(words), words.shape[1] + 1), dtype=np.int64)
        np.cumsum(np.bitwise_count(words), axis=1, out=before[:, 1:])
        layers = np.diff(before[:, self.borders], axis=1)
        totals: Numbers = np.concatenate([layers, layers.sum(axis=1, keepdims=True)], axis=1, dtype=np.float64)
        return totals
