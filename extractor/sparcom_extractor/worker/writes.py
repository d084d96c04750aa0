"""Finds the parts of a model's parameters that its checkpoint did not write.

1. While the model is built: remember every storage that came from `torch.empty`. Its content is random.
2. While the checkpoint is loaded: remember every write, and the checkpoint tensor that it came from.
3. Missing is what is random and was not written, and what one layer lacks and its siblings have.

It watches torch's operations, not vLLM's loaders, so it covers fused projections, biases, experts, embeddings and
tensor-parallel slices of every architecture alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # between dots: of a layer or an expert, not the 13 of w13_weight
_DERIVED = re.compile(r"g_idx|sort_indices|azp_adj")  # quantized layers compute these after loading, or do without

Spans = NDArray[np.int64]  # (n, 2): first byte and end
NO_SPANS: Spans = np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Write:
    """One write into a storage. source: the checkpoint tensor that it came from, or ""."""

    source: str
    spans: Spans


@cache
def _effect(func: Any) -> tuple[bool, list[tuple[int, str]]]:
    """Return whether an operation allocates its result, and index and name of the arguments that it writes to."""
    arguments = enumerate(func._schema.arguments)
    written = [(index, item.name) for index, item in arguments if item.alias_info and item.alias_info.is_write]
    return any(item.alias_info is None for item in func._schema.returns), written


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches this thread's operations while it is entered.

    Attributes:
        source: set it to the checkpoint tensor that is being loaded.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = ""
        self._empty: set[int] = set()  # addresses
        self._writes: dict[int, list[Write]] = defaultdict(list)  # by address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and note its effect on memory."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        allocates, written = _effect(func)
        if allocates:
            self._note_allocated(result, empty=func._schema.name in _EMPTY)
        for index, name in written:
            for address, tensor in _addresses(args[index] if index < len(args) else named.get(name)):
                self._writes[address].append(Write(self.source, byte_spans(tensor)))
        return result

    def _note_allocated(self, result: Any, *, empty: bool) -> None:
        """Forget what was known of the addresses: memory is used again."""
        for address, _ in _addresses(result):
            (self._empty.add if empty else self._empty.discard)(address)
            self._writes.pop(address, None)

    def missing(self, parameters: Iterable[tuple[str, torch.Tensor]], packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the names of the checkpoint tensors that the parameters lack, in the order of the parameters.

        Args:
            parameters: name and tensor of each, as vLLM names them.
            packed: the model's `packed_modules_mapping`, from fused modules to those of the checkpoint.
        """
        loaded = [
            _Loaded(name, tensor, address in self._empty, self._writes.get(address, []))
            for name, tensor in parameters
            if not _DERIVED.search(name)
            for address, _ in _addresses(tensor)
        ]
        groups: dict[Any, list[_Loaded]] = defaultdict(list)
        for item in loaded:
            groups[item.kind].append(item)
        written = {kind: subtract(_join(group, checkpoint=True), NO_SPANS) for kind, group in groups.items()}
        gaps = [(item, gap) for item in loaded for gap in item.gaps(written[item.kind]).tolist()]
        names = (name for item, gap in gaps for name in _name_gap(item, gap, groups[item.kind], packed))
        return list(dict.fromkeys(names))


class _Loaded:
    """A parameter and what was written into it, in bytes from its first one.

    Attributes:
        kind: equal for the same parameter of other layers.
        random: its memory held no values before it was written.
    """

    def __init__(self, name: str, tensor: torch.Tensor, random: bool, writes: Sequence[Write]) -> None:
        first = int(tensor.storage_offset()) * tensor.element_size()
        self.name, self.random = name, random
        self.kind = (_NUMBER.sub("*", name), tensor.shape, tensor.dtype)
        self.own = byte_spans(tensor) - first
        self.writes = [Write(write.source, write.spans - first) for write in writes]

    def gaps(self, siblings: Spans) -> Spans:
        """Return what is missing. siblings: what the checkpoint wrote into parameters of this kind."""
        if self.random:
            return subtract(self.own, _join([self], checkpoint=False))
        return subtract(siblings, _join([self], checkpoint=True))


def _join(group: Sequence[_Loaded], *, checkpoint: bool) -> Spans:
    """Return the spans of all writes, or of those from the checkpoint alone."""
    return np.concatenate(
        [NO_SPANS, *(write.spans for item in group for write in item.writes if write.source or not checkpoint)]
    )


def _addresses(value: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each tensor in a value with the address of its storage; without those that have none (meta, wrappers)."""
    for tensor in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta" and tensor.layout == torch.strided:
            with suppress(RuntimeError):
                if address := int(tensor.untyped_storage().data_ptr()):
                    yield address, tensor


def byte_spans(tensor: torch.Tensor) -> Spans:
    """Return the bytes of its storage that a strided tensor covers: int64 (n, 2), ascending, each [first, end)."""
    size, block = tensor.element_size(), 1
    if not tensor.numel():
        return NO_SPANS
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    strides = sorted((stride, length) for stride, length in sizes if length > 1 and stride)
    while strides and strides[0][0] == block:
        block *= strides.pop(0)[1]
    first = np.array([tensor.storage_offset()], np.int64)
    for stride, length in reversed(strides):
        first = (first[:, None] + stride * np.arange(length, dtype=np.int64)).ravel()
    return np.stack([first, first + block], axis=1) * size


def subtract(wanted: Spans, have: Spans) -> Spans:
    """Return the parts of `wanted` that `have` does not cover: int64 (n, 2), merged, ascending. Both may overlap."""
    borders = np.unique(np.concatenate([wanted, have]))

    def covered(spans: Spans) -> NDArray[np.bool_]:
        """Whether the bytes from each border to the next are in a span."""
        begun, ended = (np.searchsorted(np.sort(column), borders, side="right") for column in spans.T)
        result: NDArray[np.bool_] = begun > ended
        return result

    inside = covered(wanted) & ~covered(have)
    return borders[np.flatnonzero(np.diff(inside, prepend=False))].reshape(-1, 2)


def _name_gap(
    item: _Loaded, gap: Sequence[int], siblings: Sequence[_Loaded], packed: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the checkpoint's names for a gap: from a sibling that has it, or else from the packing."""
    for other in siblings:
        found = [renumbered(source, other.name, item.name) for source in _sources_of(other, gap)]
        if other is not item and all(found) and found:
            return found
    sources = {write.source for write in item.writes}
    for fused, parts in packed.items():
        if f".{fused}." in f".{item.name}":
            split = [item.name.replace(fused, part) for part in parts]
            return [name for name in split if name not in sources] or [item.name]
    return [item.name]


def _sources_of(item: _Loaded, gap: Sequence[int]) -> list[str]:
    """Return the checkpoint tensors that were written into the gap."""
    touching = [
        write.source
        for write in item.writes
        if write.source and ((write.spans[:, 0] < gap[1]) & (write.spans[:, 1] > gap[0])).any()
    ]
    return list(dict.fromkeys(touching))


def renumbered(source: str, its: str, wanted: str) -> str:
    """Return the name of `source`, a checkpoint tensor of parameter `its`, for parameter `wanted`; "" if unknown."""
    before, after = _NUMBER.findall(its), _NUMBER.findall(wanted)
    if _NUMBER.findall(source)[: len(before)] != before:
        return ""
    numbers = iter(after)
    return _NUMBER.sub(lambda found: next(numbers, found[0]), source)
