"""Sums of packed bits on the host: at how many rows is each neuron active.

Rows are added as hardware adds bits. A row is a plane of bits, each worth 1. A full adder takes three planes of one
worth and gives two, their sum of the same worth and their carry of twice that; so n planes become log2(n) in n steps of
five bitwise operations on whole rows, and only those few are spread into a number for each neuron.

It does not know requests or what a layer means; `capture/count_kernel.py` does the same on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_rows(name: str, rows: Mapping[str, NDArray[Any]], counts: NDArray[np.uint32]) -> None:
    """Add rows of a step to the counts of an archive's array.

    Args:
        name: of the array of counts. rows: (rows, …) each, by the name of the token array.
        counts: uint32 (layers, …), added to in place.
    """
    component = name.removesuffix("/count")
    if component == "router":
        add_routes(rows["router/expert"], counts)
    elif component == "expert_neuron":
        add_expert_counts(rows["expert_neuron/active"], rows["router/expert"], counts)
    else:
        add_counts_host(rows[f"{component}/active"], counts)


def add_routes(experts: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add chosen experts, uint16 (rows, layers, choices), to how often each was chosen: uint32 (layers, experts)."""
    layers, number = counts.shape
    if (largest := int(experts.max(initial=0))) >= number:
        raise ValueError(f"a router chooses among {number} experts; a row says {largest}")
    place = experts + np.arange(layers)[:, None] * number
    counts += np.bincount(place.ravel(), minlength=counts.size).reshape(counts.shape).astype(np.uint32)


def add_expert_counts(masks: NDArray[np.uint8], experts: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add the masks of chosen experts to the counters of those experts.

    Args:
        masks: uint8 (rows, layers, choices, ⌈neurons / 8⌉). experts: uint16 (rows, layers, choices).
        counts: uint32 (layers, experts, neurons), added to in place.
    """
    if len(masks) < _FEW_ROWS:
        bits = np.unpackbits(masks, axis=-1, bitorder="little", count=counts.shape[-1])
        layers = np.arange(len(counts))[:, None]
        for row, chosen in zip(bits, experts, strict=True):
            counts[layers, chosen] += row  # no expert twice in a row
        return
    for layer, own in enumerate(counts):
        chosen = experts[:, layer].ravel()
        packed = masks[:, layer].reshape(len(chosen), -1)
        order = np.argsort(chosen, kind="stable")
        numbers, first = np.unique(chosen[order], return_index=True)
        for expert, rows in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            add_counts_host(packed[rows][:, None], own[expert][None])


_FEW_ROWS = 10  # below this the plain sum is as fast: 67 µs against 75 for 8 rows of SmolLM2, 392 against 155 for 50


def add_counts_host(masks: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add the bits of rows to their counters.

    Args:
        masks: uint8 (rows, layers, ⌈neurons / 8⌉), little bit order; need not be contiguous.
        counts: uint32 (layers, neurons), added to in place.
    """
    rows, layers, width = masks.shape
    if rows < _FEW_ROWS:
        bits = np.unpackbits(masks, axis=2, bitorder="little")[:, :, : counts.shape[1]]
        counts += bits.sum(axis=0, dtype=np.uint32)
        return
    words = -(-layers * width // 8)
    packed = np.zeros((rows, words * 8), dtype=np.uint8)
    packed[:, : layers * width].reshape(rows, layers, width)[...] = masks
    for worth, plane in enumerate(_add_planes(packed.view(np.uint64))):
        bits = np.unpackbits(plane.view(np.uint8)[: layers * width].reshape(layers, width), axis=1, bitorder="little")
        counts += bits[:, : counts.shape[1]].astype(np.uint32) << np.uint32(worth)


def _add_planes(planes: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """The sum of bit planes (planes, words) in binary: entry i holds bit i of every position's sum, (words,)."""
    digits = []
    while len(planes):
        carries = []
        while len(planes) > 1:
            third, rest = divmod(len(planes), 3)
            if third == 0:  # two planes: a half adder
                carries.append(planes[:1] & planes[1:])
                planes = planes[:1] ^ planes[1:]
                continue
            one, two, three = planes[:third], planes[third : 2 * third], planes[2 * third : 3 * third]
            either = one ^ two
            carries.append((one & two) | (either & three))
            planes = np.concatenate([either ^ three, planes[3 * third :]]) if rest else either ^ three
        digits.append(planes[0])
        planes = np.concatenate(carries) if carries else planes[:0]
    return digits
