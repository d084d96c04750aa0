"""Groups instructions by category, in order of first appearance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NONE_LABEL = "(none)"


def category_labels(categories: Sequence[str]) -> list[str]:
    """Return the distinct categories in order of first appearance; the empty category becomes "(none)".

    If a category "(none)" already exists, the empty one becomes "(no category)", so that the two never merge.
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
    """Mixin with labels and codes of `categories`, one string per instruction."""

    categories: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """Labels of the c groups, in order of first appearance."""
        return category_labels(self.categories)

    @property
    def codes(self) -> NDArray[np.intp]:
        """Group of each instruction: intp (n,), an index into `labels`."""
        return category_codes(self.categories)
