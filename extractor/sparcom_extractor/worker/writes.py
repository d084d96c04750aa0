"""Find parameters of a model that its checkpoint did not write, or wrote only in part.

1. While the model is built, record every storage from `torch.empty`. Its content is uninitialized.
2. While the checkpoint is loaded, record every write, and the checkpoint tensor that it came from.
3. Report uninitialized memory that was not written, and tensors that one layer lacks although its siblings have them.

This watches torch's operations, not vLLM's loaders. It covers fused projections, biases, experts, embeddings and
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
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # between dots: a layer or expert index, not the 13 of w13_weight
_DERIVED = re.compile(r"g_idx|sort_indices|azp_adj")  # quantized layers compute these after loading, or do without

Spans = NDArray[np.int64]  # (n, 2): first byte and end
NO_SPANS: Spans = np.empty((0, 2), np.int64)


@cache
def _effect(func: Any) -> tuple[bool, list[tuple[int, str]]]:
    """Return whether an operation allocates its result, and the index and name of each argument that it writes to."""
    arguments = enumerate(func._schema.arguments)
    written = [(index, item.name) for index, item in arguments if item.alias_info and item.alias_info.is_write]
    return any(item.alias_info is None for item in func._schema.returns), written


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records this thread's operations while entered. Set `source` to the checkpoint tensor being loaded."""

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
        """Reset the records of the result's addresses: the allocator reuses memory."""
        for address, _ in _addresses(result):
            (self._empty.add if empty else self._empty.discard)(address)
            self._writes.pop(address, None)

    def missing(self, parameters: Iterable[tuple[str, torch.Tensor]], packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the names of the checkpoint tensors that the parameters lack, in the order of the parameters.
        parameters: as vLLM names them. packed: checkpoint modules per fused module."""
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
    """A model parameter. kind: equal among siblings, the same parameter in other layers.
    sources: checkpoint tensors written into it. missing: checkpoint tensors written only into its siblings."""

    def __init__(self, name: str, tensor: torch.Tensor, empty: bool, writes: Sequence[tuple[str, Spans]]) -> None:
        self.name = name
        self.kind = (_NUMBER.sub("*", name), tensor.shape, tensor.dtype)
        self.sources = list(dict.fromkeys(source for source, _ in writes if source))
        self.missing: list[str] = []
        self._empty = empty
        written = np.concatenate([NO_SPANS, *(spans for _, spans in writes)])
        self._unwritten = empty and len(subtract(byte_spans(tensor), written)) > 0

    @property
    def incomplete(self) -> bool:
        """Whether memory from `torch.empty` was not written; for other memory, whether it lacks a sibling's source."""
        return self._unwritten if self._empty else bool(self.missing)

    def missing_names(self, packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the names of the missing checkpoint tensors, derived from siblings, or else from the packing."""
        for fused, parts in packed.items():
            if not self.missing and f".{fused}." in f".{self.name}":
                split = [self.name.replace(fused, part) for part in parts]
                return [name for name in split if name not in self.sources] or [self.name]
        return self.missing or [self.name]


def _addresses(value: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each tensor in a value with its storage address; skip tensors without one (meta, wrappers)."""
    for tensor in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta" and tensor.layout == torch.strided:
            with suppress(RuntimeError):
                if address := int(tensor.untyped_storage().data_ptr()):
                    yield address, tensor


def byte_spans(tensor: torch.Tensor) -> Spans:
    """Return the bytes of its storage that a strided tensor covers: int64 (n, 2), ascending spans [first, end)."""
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
    bounds = np.unique(np.concatenate([wanted, have]))

    def covered(spans: Spans) -> NDArray[np.bool_]:
        """Return whether the bytes from each bound to the next are in a span."""
        begun, ended = (np.searchsorted(np.sort(column), bounds, side="right") for column in spans.T)
        result: NDArray[np.bool_] = begun > ended
        return result

    inside = covered(wanted) & ~covered(have)
    return bounds[np.flatnonzero(np.diff(inside, prepend=False))].reshape(-1, 2)


def renumbered(source: str, its: str, wanted: str) -> str:
    """Return the tensor that parameter `wanted` needs, given that `source` was written to `its`; "" if unknown."""
    before, after = _NUMBER.findall(its), _NUMBER.findall(wanted)
    if _NUMBER.findall(source)[: len(before)] != before:
        return ""
    numbers = iter(after)
    return _NUMBER.sub(lambda found: next(numbers, found[0]), source)
