"""Batches of instructions of like lengths, so that little is padded, and the padding. Knows neither model nor loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from sparcom_models.tune.chat import IGNORED

_SORTED = 50  # batches that are sorted together; more would put the same instructions together in every round


class Batches:
    """Numbers of the instructions of each batch. A round's order is fixed by the seed and the number of the round.

    1. Shuffle the instructions. 2. Sort each run of 50 batches by length. 3. Cut into batches. 4. Shuffle the batches.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed, self._epoch = np.array(lengths), size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._size)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which round comes."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self._seed, self._epoch])
        order = draw.permutation(len(self._lengths))
        runs = np.split(order, range(self._size * _SORTED, len(order), self._size * _SORTED))
        grouped = np.concatenate([run[np.argsort(self._lengths[run], kind="stable")] for run in runs])
        batches = [grouped[start : start + self._size].tolist() for start in range(0, len(grouped), self._size)]
        yield from (batches[number] for number in draw.permutation(len(batches)))


def pad(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad a batch on the right.

    Args:
        rows: input_ids and labels of each instruction.

    Returns:
        input_ids, attention_mask and labels, each int64 (batch, longest).
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    columns = {
        "input_ids": (ids, 0),
        "attention_mask": ([torch.ones_like(row) for row in ids], 0),
        "labels": ([torch.tensor(row["labels"]) for row in rows], IGNORED),
    }
    return {
        name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=filler)
        for name, (column, filler) in columns.items()
    }
