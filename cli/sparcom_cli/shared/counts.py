"""How many instructions are complete, in words: the same for a job, an extraction and an archive."""

from __future__ import annotations

from collections.abc import Mapping


def describe_counts(counts: Mapping[str, int], total: int) -> str:
    """Instructions by state, such as "106 of 600 instructions complete, 494 cancelled".

    Args:
        counts: how many are `complete`, `failed`, `cancelled` and, of an archive, `pending`.
        total: how many there are.
    """
    others = [f"{counts[name]:,} {name}" for name in ("failed", "cancelled", "pending") if counts.get(name)]
    return ", ".join([f"{counts['complete']:,} of {total:,} instructions complete", *others])
