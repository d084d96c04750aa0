"""Finds the parts of a model's parameters that its checkpoint did not write.

1. While the model is built: remember every storage that came from `torch.empty`. Its content is random.
2. While the checkpoint is loaded: remember every write, and the checkpoint tensor that it came from.
3. Missing is what is random and was not written, and what one layer lacks and its siblings have.

Torch's operations are watched, not vLLM's loaders: this covers fused projections, biases, experts, embeddings and
tensor-parallel slices of every architecture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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


@cache
def _effect(func: Any) -> tuple[bool, list[tuple[int, str]]]:
    """Return whether an operation allocates its result, and index and name of the arguments that it writes to."""
    arguments = enumerate(func._schema.arguments)
    written = [(index, item.name) for index, item in arguments if item.alias_info and item.alias_info.is_write]
    return any(item.alias_info is None for item in func._schema.returns), written


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches this thread's operations while it is entered. Set `source` to the checkpoint tensor being loaded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = ""
        self._empty: set[int] = set()  # addresses
        self._writes: dict[int, list[tuple[str, Spans]]] = defaultdict(list)  # by address: source, bytes

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
                self._writes[address].append((self.source, byte_spans(tensor)))
        return result

    def _note_allocated(self, result: Any, *, empty: bool) -> None:
        """Forget what was known of the addresses: memory is used again."""
        for address, _ in _addresses(result):
            (self._empty.add if empty else self._empty.discard)(address)
            self._writes.pop(address, None)

    def missing(self, parameters: Iterable[tuple[str, torch.Tensor]], packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the names of the checkpoint tensors that the parameters lack, in the order of the parameters.
        parameters: as vLLM names them. packed: the checkpoint's modules of each fused module."""
        found = [
            _Parameter(name, tensor, address in self._empty, self._writes.get(address, []))
            for name, tensor in parameters
            if not _DERIVED.search(name)
            for address, _ in _addresses(tensor)
        ]
        siblings: dict[Any, list[_Parameter]] = defaultdict(list)
        for item in found:
            siblings[item.kind].append(item)
        for group in siblings.values():
            first = group[0].name
            sources = [{renumbered(name, item.name, first): None for name in item.sources} for item in group]
            expected = {name: None for names in sources for name in names if name}
            for item, own in zip(group, sources, strict=True):
                item.missing = [renumbered(name, first, item.name) for name in expected if name not in own]
        return list(dict.fromkeys(name for item in found if item.incomplete for name in item.missing_names(packed)))


class _Parameter:
    """A parameter. kind: equal for its siblings, the same parameter of other layers.
    sources: checkpoint tensors that were written into it. missing: those that were written into siblings alone."""

    def __init__(self, name: str, tensor: torch.Tensor, random: bool, writes: Sequence[tuple[str, Spans]]) -> None:
        self.name = name
        self.kind = (_NUMBER.sub("*", name), tensor.shape, tensor.dtype)
        self.sources = list(dict.fromkeys(source for source, _ in writes if source))
        self.missing: list[str] = []
        self._random = random
        written = np.concatenate([NO_SPANS, *(spans for _, spans in writes)])
        self._unwritten = random and len(subtract(byte_spans(tensor), written)) > 0

    @property
    def incomplete(self) -> bool:
        """Whether memory of `torch.empty` was not written, or other memory not by all that siblings have."""
        return self._unwritten if self._random else bool(self.missing)

    def missing_names(self, packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the checkpoint's names for what is missing: from siblings, or else from the packing."""
        for fused, parts in packed.items():
            if not self.missing and f".{fused}." in f".{self.name}":
                split = [self.name.replace(fused, part) for part in parts]
                return [name for name in split if name not in self.sources] or [self.name]
        return self.missing or [self.name]


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


def renumbered(source: str, its: str, wanted: str) -> str:
    """Return the name of `source`, a checkpoint tensor of parameter `its`, for parameter `wanted`; "" if unknown."""
    before, after = _NUMBER.findall(its), _NUMBER.findall(wanted)
    if _NUMBER.findall(source)[: len(before)] != before:
        return ""
    numbers = iter(after)
    return _NUMBER.sub(lambda found: next(numbers, found[0]), source)
