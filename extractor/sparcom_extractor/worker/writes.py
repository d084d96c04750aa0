"""Finds the parts of a model's parameters that its checkpoint did not write.

1. While the model is built: remember every storage that came from `torch.empty`. Its content is random.
2. While the checkpoint is loaded: remember every write, and the checkpoint tensor that it came from.
3. Missing is what is random and was not written. Missing is also what one layer lacks and its siblings have.

It watches torch's operations, not vLLM's loaders, so it covers fused projections, biases, experts, embeddings and
tensor-parallel slices of every architecture alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # between dots: of a layer or an expert, not the 13 of w13_weight
_DERIVED = re.compile(r"g_idx|sort_indices|azp_adj")  # quantised layers compute these after loading, or do without

Spans = NDArray[np.int64]  # (n, 2): first byte and end


@dataclass(frozen=True, slots=True)
class Write:
    """One write into a storage. source: the checkpoint tensor that it came from, or ""."""

    source: str
    spans: Spans


@dataclass(frozen=True, slots=True)
class _Effect:
    """What an operation does to memory. written: places and names of the arguments that it writes to."""

    empty: bool
    fresh: bool
    written: tuple[tuple[int, str], ...]


@cache
def _effect(func: Any) -> _Effect:
    schema = func._schema
    written = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    fresh = any(item.alias_info is None for item in schema.returns)
    return _Effect(schema.name in _EMPTY, fresh, written)


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of this thread while it is entered; set `source` to the checkpoint tensor in hand."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = ""
        self._empty: set[int] = set()
        self._writes: dict[int, list[Write]] = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and note what it does to memory."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        effect = _effect(func)
        if effect.fresh:
            self._allocated(result, effect.empty)
        for place, name in effect.written:
            self._written(args[place] if place < len(args) else named.get(name))
        return result

    def _allocated(self, result: Any, empty: bool) -> None:
        """An address that is used again starts anew."""
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if (address := _address(tensor)) is not None:
                (self._empty.add if empty else self._empty.discard)(address)
                self._writes.pop(address, None)

    def _written(self, target: Any) -> None:
        for tensor in target if isinstance(target, (tuple, list)) else [target]:
            if (address := _address(tensor)) is not None:
                self._writes[address].append(Write(self.source, byte_spans(tensor)))

    def missing(self, parameters: Iterable[tuple[str, torch.Tensor]], packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Names of the checkpoint tensors that the parameters lack, in the order of the parameters.

        Args:
            parameters: name and tensor of each, as vLLM calls them.
            packed: the model's `packed_modules_mapping`, from fused modules to those of the checkpoint.
        """
        groups: dict[tuple[Any, ...], list[_Loaded]] = defaultdict(list)
        loaded = []
        for name, tensor in parameters:
            if (address := _address(tensor)) is None or _DERIVED.search(name):
                continue
            item = _Loaded(name, tensor, address in self._empty, self._writes.get(address, []))
            loaded.append(item)
            groups[_NUMBER.sub("*", name), tensor.shape, tensor.dtype].append(item)
        expected = {id(item): group for group in groups.values() for item in group}
        unions = {id(group): _union(group) for group in groups.values()}
        names: dict[str, None] = {}
        for item in loaded:
            siblings = expected[id(item)]
            for gap in item.gaps(unions[id(siblings)]).tolist():
                names |= dict.fromkeys(_named(item, gap, siblings, packed))
        return list(names)


class _Loaded:
    """A parameter with what was written into it, all in bytes from its first one."""

    def __init__(self, name: str, tensor: torch.Tensor, random: bool, writes: Sequence[Write]) -> None:
        base = int(tensor.storage_offset()) * tensor.element_size()
        self.name, self.random = name, random
        self.own = byte_spans(tensor) - base
        self.writes = [Write(write.source, write.spans - base) for write in writes]
        stacked = ".experts." in name and tensor.dim() > 1
        self.expert_bytes = tensor[0].numel() * tensor.element_size() if stacked else 0
        self.sources = {write.source for write in writes if write.source}

    def gaps(self, siblings: Spans) -> Spans:
        """What is missing. siblings: what the checkpoint wrote of this parameter or of one like it."""
        if self.random:
            return subtract(self.own, _joined(write.spans for write in self.writes))
        return subtract(siblings, _joined(write.spans for write in self.writes if write.source))


def _union(group: Sequence[_Loaded]) -> Spans:
    spans = _joined(write.spans for item in group for write in item.writes if write.source)
    return subtract(spans, np.empty((0, 2), np.int64))


def _joined(spans: Iterable[Spans]) -> Spans:
    return np.concatenate([np.empty((0, 2), np.int64), *spans])


def _address(tensor: Any) -> int | None:
    """Where the tensor's storage begins, or None: it has none, as on the device meta or in a wrapper of tensors."""
    if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return None
    try:
        return int(tensor.untyped_storage().data_ptr()) or None
    except RuntimeError:
        return None


def byte_spans(tensor: torch.Tensor) -> Spans:
    """The bytes of a storage that a strided tensor covers, int64 (n, 2), ascending, each [first, end)."""
    size, block = tensor.element_size(), 1
    if not tensor.numel():
        return np.empty((0, 2), np.int64)
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    strides = sorted((stride, length) for stride, length in sizes if length > 1 and stride)
    while strides and strides[0][0] == block:
        block *= strides.pop(0)[1]
    first = np.array([tensor.storage_offset()], np.int64)
    for stride, length in reversed(strides):
        first = (first[:, None] + stride * np.arange(length, dtype=np.int64)).ravel()
    return np.stack([first, first + block], axis=1) * size


def subtract(wanted: Spans, have: Spans) -> Spans:
    """The parts of `wanted` that `have` does not cover, int64 (n, 2), merged and ascending; either may overlap."""
    borders = np.concatenate([wanted[:, 0], wanted[:, 1], have[:, 0], have[:, 1]])
    steps = np.zeros((len(borders), 2), np.int64)
    at = np.cumsum([0, len(wanted), len(wanted), len(have), len(have)])
    for column, first in ((0, 0), (1, 2)):
        steps[at[first] : at[first + 1], column] = 1
        steps[at[first + 1] : at[first + 2], column] = -1
    order = np.argsort(borders, kind="stable")
    borders, depth = borders[order], np.cumsum(steps[order], axis=0)
    inside = (depth[:, 0] > 0) & (depth[:, 1] == 0)
    parts = np.stack([borders[:-1], borders[1:]], axis=1)[inside[:-1]]
    parts = parts[parts[:, 0] < parts[:, 1]]
    new = np.append(True, parts[1:, 0] > parts[:-1, 1])[: len(parts)]
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(parts)) - 1 if len(parts) else starts
    return np.stack([parts[starts, 0], parts[ends, 1]], axis=1)


def _named(
    item: _Loaded, gap: Sequence[int], siblings: Sequence[_Loaded], packed: Mapping[str, Sequence[str]]
) -> list[str]:
    """The checkpoint's names for a gap: as siblings got theirs, as other experts got theirs, or from the packing."""
    for other in siblings:
        found = [renumbered(source, other.name, item.name) for source in _sources_in(other, gap)]
        if other is not item and all(found) and found:
            return found
    if found := _like_other_experts(item, gap):
        return found
    for fused, parts in packed.items():
        if f".{fused}." in f".{item.name}":
            split = [item.name.replace(fused, part) for part in parts]
            return [name for name in split if name not in item.sources] or [item.name]
    return [item.name]


def _sources_in(item: _Loaded, gap: Sequence[int]) -> list[str]:
    """Checkpoint tensors of which a write touches the gap."""
    touching = [
        write.source
        for write in item.writes
        if write.source and ((write.spans[:, 0] < gap[1]) & (write.spans[:, 1] > gap[0])).any()
    ]
    return list(dict.fromkeys(touching))


def renumbered(source: str, its: str, wanted: str) -> str:
    """The name that `source`, a checkpoint tensor of parameter `its`, has for parameter `wanted`; "" if unknown."""
    before, after = _NUMBER.findall(its), _NUMBER.findall(wanted)
    if _NUMBER.findall(source)[: len(before)] != before:
        return ""
    numbers = iter(after)
    return _NUMBER.sub(lambda found: next(numbers, found[0]), source)


def _like_other_experts(item: _Loaded, gap: Sequence[int]) -> list[str]:
    """Names for a gap in a stack of experts, whose checkpoint has a tensor for each."""
    size = item.expert_bytes
    if not size:
        return []
    names = []
    for expert in range(gap[0] // size, (gap[1] - 1) // size + 1):
        for write in item.writes:
            first, end = int(write.spans[0, 0]), int(write.spans[-1, 1])
            own, moved = first // size, (expert - first // size) * size
            numbers = list(_NUMBER.finditer(write.source))
            inside = gap[0] <= first + moved and end + moved <= gap[1]
            if inside and numbers and int(numbers[-1][0]) == own:
                begin, stop = numbers[-1].span()
                names.append(f"{write.source[:begin]}{expert}{write.source[stop:]}")
    return list(dict.fromkeys(names))
