"""Lengths: token counts under a tokenizer, and the largest subset in which every category has the same ones.

Instructions of different categories are put together in groups, one of each, whose token counts agree (within a
tolerance, where one is given). The sets of all the first, second, … members then have the same distribution. Sorting
and sweeping gives the largest number of groups: the shortest item left can only be grouped with items within its
reach; where the shortest of another category lies beyond, it has no partner there and drops out, and otherwise the
shortest items of all categories form a group (exchanging them into any other solution makes that no smaller).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError

TOKENIZER = "tokenizer.json"


def count_tokens(texts: Sequence[str], tokenizer: Path) -> NDArray[np.int64]:
    """Tokens of each text, without special tokens: int64, shape (texts,).

    Args:
        tokenizer: a `tokenizer.json`, or a folder (of a model) that holds one.

    Raises:
        InvalidInputError: no tokenizer is there, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = tokenizer / TOKENIZER if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise InvalidInputError(
            f"a tokenizer is a {TOKENIZER} or a model's folder with one; {tokenizer} has none. Name another."
        )
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise InvalidInputError(f"{path} is no tokenizer that can be read: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    encoded = loaded.encode_batch(list(texts), add_special_tokens=False)
    return np.fromiter((len(item.ids) for item in encoded), dtype=np.int64, count=len(encoded))


def match_lengths(lengths: Mapping[str, Sequence[int]], tolerance: float = 0.0) -> dict[str, list[int]]:
    """The largest subset in which categories have the same distribution of lengths.

    Args:
        lengths: of each category the token count of each item.
        tolerance: by what share of the shortest the longest of a group may exceed it; 0 for equal counts.

    Returns:
        Of each category the positions kept, ascending; as many in each. Of equal items the earlier ones stay.

    Raises:
        InvalidInputError: no category, or a negative tolerance.
    """
    if not lengths:
        raise InvalidInputError("matching lengths needs at least one category; there is none")
    if not 0 <= tolerance < 1:
        raise InvalidInputError(f"a tolerance of length must be at least 0 and below 1; got {tolerance}")
    queues = {name: sorted(range(len(counts)), key=counts.__getitem__) for name, counts in lengths.items()}
    kept: dict[str, list[int]] = {name: [] for name in lengths}
    heads = dict.fromkeys(lengths, 0)
    while all(heads[name] < len(queue) for name, queue in queues.items()):
        first = {name: lengths[name][queue[heads[name]]] for name, queue in queues.items()}
        shortest = min(first.values())
        if _within(shortest, max(first.values()), tolerance):
            for name, queue in queues.items():
                kept[name].append(queue[heads[name]])
                heads[name] += 1
        else:
            for name, length in first.items():
                heads[name] += length == shortest
    return {name: sorted(positions) for name, positions in kept.items()}


def _within(shortest: int, longest: int, tolerance: float) -> bool:
    # A quotient, since 100 · (1 + 0.15) is rounded to less than 115.
    return longest == shortest or (shortest > 0 and (longest - shortest) / shortest <= tolerance)
