"""Length control: subsample all instructions to the same number of tokens.

Frequencies over T tokens have T + 1 possible values. Short instructions thus have more ties and larger sets, and
instructions of similar length look similar. Subsampling to equal length largely removes this effect. Each analysis uses
one random sample, so results vary slightly with the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.counted_rows import MIN_DRAWN_TOKENS, TokenDraw
from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.resampling.ranks import rank_correlation
from sparcom_data.errors import IncompleteArchiveError, UnsupportedArchiveError

S = TypeVar("S", IsnSets, ExpertCounts)
MIN_CELLS = 3  # with two cells, a rank correlation is only ±1


def subsampled(subject: S, read: Callable[[TokenDraw], S]) -> S:
    """Return the subject's instructions that are long enough, each counted over the same number of sampled tokens.

    Args:
        read: counts the subject's archive again with a token draw, by `find_isns` or `find_ises`.

    Raises:
        NotComputableError: equal lengths are switched off, or the archive does not support them.
        UnsupportedArchiveError, IncompleteArchiveError: the archive does not support them, and the options require it.
    """
    if subject.options.equal_length is False:
        raise NotComputableError("Equal lengths are switched off (equal_length=False).")
    long_enough = subject.tokens[subject.tokens >= MIN_DRAWN_TOKENS]
    tokens = subject.options.equal_length_tokens or (int(long_enough.min()) if len(long_enough) else None)
    try:
        equal = read(TokenDraw(tokens, subject.options.seed))
        kept = np.flatnonzero(np.isin(equal.instruction, subject.instruction))
        if len(kept) < 2:
            raise IncompleteArchiveError(  # noqa: TRY301
                f"equal lengths need at least 2 instructions with {tokens} tokens; there are {len(kept)}. Draw fewer"
            )
    except (UnsupportedArchiveError, IncompleteArchiveError) as error:
        if subject.options.must_match_lengths:
            raise
        raise NotComputableError(f"Instructions cannot be subsampled to equal length: {error}.") from error
    return equal if len(kept) == len(equal) else equal.take(kept)


def matrix_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """Compare two symmetric matrices over groups, float64 (c, c), at cells that are defined in both.

    Returns:
        rank_correlation: Spearman's, over off-diagonal cells; NaN with fewer than three, or with constant values.
        mean_change: mean over cells on and above the diagonal. largest_change, cell: the largest absolute change
        (signed) and its indices, first of ties; NaN and (-1, -1) if there is none. compared_rows: number of rows
        with a defined diagonal and another defined value. diagonal_largest: number of these rows with the diagonal
        larger than all other values, before and after.
    """
    difference = after - before
    known = ~np.isnan(difference)
    above, upper, off_diagonal = np.triu(known, 1), np.triu(known), known & ~np.eye(len(known), dtype=np.bool_)
    most = np.unravel_index(int(np.where(upper, np.abs(difference), -1.0).argmax()), known.shape)
    compared = known.diagonal() & off_diagonal.any(axis=1)
    exceeds = [one.diagonal() > np.where(off_diagonal, one, -np.inf).max(axis=1) for one in (before, after)]
    return {
        "rank_correlation": rank_correlation(before[above], after[above]) if above.sum() >= MIN_CELLS else np.nan,
        "mean_change": float(difference[upper].mean()) if upper.any() else np.nan,
        "largest_change": float(difference[most]),
        "cell": (int(most[0]), int(most[1])) if upper.any() else (-1, -1),
        "compared_rows": int(compared.sum()),
        "diagonal_largest": tuple(int((compared & larger).sum()) for larger in exceeds),
    }
