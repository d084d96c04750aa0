"""Groups instructions by category, in the order in which categories first appear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NONE_LABEL = "(none)"


def category_labels(categories: Sequence[str]) -> list[str]:
    """Distinct categories in order of first appearance; the empty one is called "(none)".

    Where a category of that very name exists as well, the empty one is called "(no category)": two must not merge.
    """
    distinct = list(dict.fromkeys(categories))
    label = NONE_LABEL
    while label in distinct:
        label = "(no category)" if label == NONE_LABEL else f"({label})"
    return [name or label for name in distinct]


def category_codes(categories: Sequence[str]) -> NDArray[np.intp]:
    """intp (n,): for each instruction the index of its category in `category_labels`."""
    index = {name: code for code, name in enumerate(dict.fromkeys(categories))}
    return np.array([index[name] for name in categories], dtype=np.intp)
