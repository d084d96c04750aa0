"""Count tokens, and find the largest subset in which all categories have the same length distribution.

The algorithm forms groups with one item per category whose token counts agree, within a tolerance if given. The kept
items of all categories then have the same distribution of lengths. Sorting and sweeping gives the maximum number of
groups. If the shortest remaining item is out of tolerance with the shortest item of another category, it has no partner
there and is dropped. Otherwise the shortest items of all categories form a group. An exchange argument shows that no
other choice gives more groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError

TOKENIZER = "tokenizer.json"


def count_tokens(texts: Sequence[str], tokenizer: Path) -> NDArray[np.int64]:
    """Return the number of tokens per text, without special tokens: int64 (texts,).

    Args:
        tokenizer: a `tokenizer.json`, or a folder (of a model) that holds one.

    Raises:
        InvalidInputError: there is no tokenizer, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = tokenizer / TOKENIZER if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise InvalidInputError(
            f"a tokenizer is a {TOKENIZER} or a model's folder with one; {tokenizer} has none. Give another path"
        )
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise InvalidInputError(f"{path} cannot be read as a tokenizer: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    encoded = loaded.encode_batch(list(texts), add_special_tokens=False)
    return np.fromiter((len(item.ids) for item in encoded), dtype=np.int64, count=len(encoded))


def match_lengths(lengths: Mapping[str, Sequence[int]], tolerance: float = 0.0) -> dict[str, list[int]]:
    """Return the largest subset in which all categories have the same distribution of lengths.

    Args:
        lengths: token counts of the items, per category.
        tolerance: maximum relative excess of a group's longest item over its shortest; 0 for equal counts.

    Returns:
        Positions kept, ascending, per category; equally many in each. Of equal items, the earlier ones are kept.

    Raises:
        InvalidInputError: there is no category, or the tolerance is out of range.
    """
    if not lengths:
        raise InvalidInputError("length matching needs at least one category; there is none")
    if not 0 <= tolerance < 1:
        raise InvalidInputError(f"a length tolerance must be at least 0 and below 1; got {tolerance}")
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
    # A quotient, because 100 · (1 + 0.15) rounds to less than 115.
    return longest == shortest or (shortest > 0 and (longest - shortest) / shortest <= tolerance)
