"""Groups instructions by category, in order of first appearance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NONE_LABEL = "(none)"


def category_labels(categories: Sequence[str]) -> list[str]:
    """Return the distinct categories in order of first appearance; an empty one is called "(none)".

    If a category of that name exists as well, the empty one is called "(no category)", so that two never merge.
    """
    distinct = list(dict.fromkeys(categories))
    label = NONE_LABEL
    while label in distinct:
        label = "(no category)" if label == NONE_LABEL else f"({label})"
    return [name or label for name in distinct]


def category_codes(categories: Sequence[str]) -> NDArray[np.intp]:
    """Return the index of each instruction's category in `category_labels`: intp (n,)."""
    index = {name: code for code, name in enumerate(dict.fromkeys(categories))}
    return np.array([index[name] for name in categories], dtype=np.intp)


class Grouped:
    """Gives the labels and codes of its `categories`, one string per instruction."""

    categories: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """Names of the c groups, in order of first appearance."""
        return category_labels(self.categories)

    @property
    def codes(self) -> NDArray[np.intp]:
        """Group of each instruction: intp (n,), an index into `labels`."""
        return category_codes(self.categories)
