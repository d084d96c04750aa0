"""Length control: the same number of drawn tokens per instruction.

Frequencies over T tokens take T + 1 values, so short instructions have more ties and larger sets, and instructions of
similar length look alike. Subsampled to equal length they do not. The draw is one sample; another seed gives slightly
different numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.counted_rows import LEAST_TOKENS, TokenDraw
from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.resampling.ranks import rank_correlation
from sparcom_data.errors import IncompleteArchiveError, UnsupportedArchiveError

S = TypeVar("S", IsnSets, ExpertCounts)
MIN_CELLS = 3  # two cells are either in the same order or not


def subsampled(subject: S, read: Callable[[TokenDraw], S]) -> S:
    """Return the instructions of a subject that are long enough, counted over equally many drawn tokens.

    Args:
        read: counts the subject's archive again with a draw: `find_isns` or `find_ises`.

    Raises:
        NotComputableError: equal lengths are switched off, or the archive does not allow them.
        UnsupportedArchiveError, IncompleteArchiveError: it does not, and the options demand them.
    """
    if subject.options.equal_length is False:
        raise NotComputableError("Equal lengths are switched off (equal_length=False).")
    long_enough = subject.tokens[subject.tokens >= LEAST_TOKENS]
    tokens = subject.options.equal_length_tokens or (int(long_enough.min()) if len(long_enough) else None)
    try:
        equal = read(TokenDraw(tokens, subject.options.seed))
        kept = np.flatnonzero(np.isin(equal.instruction, subject.instruction))
        if len(kept) < 2:
            raise IncompleteArchiveError(  # noqa: TRY301
                f"equal lengths need at least 2 instructions with {tokens} tokens; {len(kept)} have so many. Draw fewer"
            )
    except (UnsupportedArchiveError, IncompleteArchiveError) as error:
        if subject.options.must_match_lengths:
            raise
        raise NotComputableError(f"Instructions cannot be subsampled to equal length: {error}.") from error
    return equal if len(kept) == len(equal) else equal.take(kept)


def matrix_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """Compare two symmetric matrices over groups, float64 (c, c). A cell that is NaN in one is in no comparison.

    Returns:
        rank_correlation: Spearman's, over cells of two different groups; NaN with fewer than three, or all alike.
        mean_change: of the cells on and above the diagonal. largest_change: of the cell that changes most, `cell`, the
        first of equals; NaN and (-1, -1) without any. compared_rows: rows with a value on the diagonal and one beside
        it. diagonal_largest: rows of these whose diagonal exceeds every other value, before and after.
    """
    difference = after - before
    known = ~np.isnan(difference)
    above, upper, beside = np.triu(known, 1), np.triu(known), known & ~np.eye(len(known), dtype=np.bool_)
    most = np.unravel_index(int(np.where(upper, np.abs(difference), -1.0).argmax()), known.shape)
    compared = known.diagonal() & beside.any(axis=1)
    exceeds = [one.diagonal() > np.where(beside, one, -np.inf).max(axis=1) for one in (before, after)]
    return {
        "rank_correlation": rank_correlation(before[above], after[above]) if above.sum() >= MIN_CELLS else np.nan,
        "mean_change": float(difference[upper].mean()) if upper.any() else np.nan,
        "largest_change": float(difference[most]),
        "cell": (int(most[0]), int(most[1])) if upper.any() else (-1, -1),
        "compared_rows": int(compared.sum()),
        "diagonal_largest": tuple(int((compared & larger).sum()) for larger in exceeds),
    }
