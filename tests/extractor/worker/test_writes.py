"""Byte spans of writes are compared with boolean masks; a small module reports missing tensors after some writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparcom_extractor.worker.writes import Spans, WriteWatch, byte_spans, renumbered, subtract


def mask(spans: Spans, size: int) -> np.ndarray:
    """Return bool (size,): the bytes that the spans cover."""
    covered = np.zeros(size, dtype=bool)
    for first, end in spans.tolist():
        covered[first:end] = True
    return covered


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_subtracted_as_sets_of_bytes(seed: int) -> None:
    """Spans may overlap, touch or be empty; the result is merged and ascending."""
    rng = np.random.default_rng(seed)
    wanted, have = (np.sort(rng.integers(0, 60, size=(rng.integers(0, 7), 2)), axis=1) for _ in range(2))
    left = subtract(wanted, have)
    assert np.array_equal(mask(left, 60), mask(wanted, 60) & ~mask(have, 60))
    assert (left[1:, 0] > left[:-1, 1]).all()
    assert (left[:, 0] < left[:, 1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_spans_of_views_are_the_bytes_that_they_cover(dtype: torch.dtype) -> None:
    """For slices of every axis, transposed and expanded views, the bytes of the storage show where a view writes."""
    base = torch.zeros(3, 5, 8, dtype=dtype)
    views = [base, base[1], base[:, 2:4], base[..., 3], base.transpose(0, 2)[2:5], base[1:1], base[::2, 1, ::3]]
    views.append(base[0, 0, :1].expand(8))
    for view in views:
        base.zero_()
        view.fill_(1)
        written = (base.view(torch.uint8).numpy().reshape(-1, base.element_size()) != 0).any(axis=1)
        assert np.array_equal(mask(byte_spans(view), base.nbytes)[:: base.element_size()], written), view.stride()


class Layer(nn.Module):
    """A fused projection of uninitialized memory, a stack of three experts, and a norm initialized with ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.ParameterDict({"weight": nn.Parameter(torch.empty(4, 2))})
        self.experts = nn.ParameterDict({"w13": nn.Parameter(torch.empty(3, 4, 2))})
        self.norm = nn.Parameter(torch.ones(2))


def load(left_out: str) -> list[str]:
    """Return the missing tensors of two layers if one checkpoint tensor, or all with such a prefix, are omitted."""
    with WriteWatch() as watch:
        layers = nn.ModuleList([Layer(), Layer()])
        for number, layer in enumerate(layers):
            fused = layer.gate_up["weight"].data
            parts = {"gate": fused[:2], "up": fused[2:], "norm": layer.norm.data}
            for expert, stack in enumerate(layer.experts["w13"].data):
                parts |= {f"experts.{expert}.gate": stack[:2], f"experts.{expert}.up": stack[2:]}
            for name, target in parts.items():
                watch.source = f"m.{number}.{name}"
                if not watch.source.startswith(left_out):
                    target.copy_(torch.rand_like(target))
        watch.source = ""
    return watch.missing(layers.named_parameters(prefix="x"), {"gate_up": ["gate", "up"]})


@pytest.mark.parametrize(
    "left_out", ["m.0.gate", "m.1.up", "m.1.norm", "m.0.experts.0.gate", "m.1.experts.2.up", "none"]
)
def test_missing_tensors_have_their_checkpoint_names(left_out: str) -> None:
    """Names come from the sibling layer. A norm has no uninitialized memory, but its sibling was loaded."""
    assert load(left_out) == ([] if left_out == "none" else [left_out])


def test_without_a_sibling_names_come_from_packing() -> None:
    """Siblings name an expert's tensors. If all layers lack them, the packing does, or the parameter itself."""
    assert load("m.0.experts.1") == ["m.0.experts.1.gate", "m.0.experts.1.up"]
    assert {name for name in load("m.") if "x.0" in name} == {"x.0.experts.w13", "x.0.gate.weight", "x.0.up.weight"}


@pytest.mark.parametrize(
    ("source", "its", "wanted", "name"),
    [
        ("a.0.q", "b.0.qkv", "b.7.qkv", "a.7.q"),
        ("a.3.experts.3.w1", "b.3.experts.w13_weight", "b.4.experts.w13_weight", "a.4.experts.3.w1"),
        ("a.9.q", "b.0.qkv", "b.7.qkv", ""),
        ("norm", "norm", "norm", "norm"),
    ],
)
def test_names_are_renumbered_between_dots_only(source: str, its: str, wanted: str, name: str) -> None:
    """The 13 of w13_weight is not a layer, and a name that does not begin with the layer's number is not guessed."""
    assert renumbered(source, its, wanted) == name


def test_a_reused_address_starts_anew() -> None:
    """Uninitialized memory at an address that was written before is uninitialized again."""
    with WriteWatch() as watch:
        first = torch.empty(1024)
        watch.source = "old"
        first.fill_(1)
        watch._note_allocated(first, empty=True)  # like an allocator that reuses the address
        assert watch.missing([("p", first)], {}) == ["p"]
        watch._note_allocated(first, empty=False)
        assert watch.missing([("p", first)], {}) == []
