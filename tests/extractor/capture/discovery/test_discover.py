"""Gated FFNs are found by their structure; a model that cannot be captured is refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import GATED, GatedFFN, layer_number
from sparcom_extractor.capture.discovery.activations import REFUSED as REFUSED_ACTIVATIONS
from sparcom_extractor.capture.discovery.findings import find_captured


def find_gated_ffns(model: nn.Module, layers: int) -> list[GatedFFN]:
    return find_captured(model, range(layers)).dense


class Linear(nn.Module):
    """A linear layer with the attributes of vLLM's."""

    def __init__(self, input_size: int, output_size: int, parts: int = 1) -> None:
        super().__init__()
        self.input_size = input_size
        self.input_size_per_partition = input_size // parts
        self.output_size = output_size


class SiluAndMul(nn.Module):
    """Named as vLLM's."""


class GeluAndMul(nn.Module):
    """Named as vLLM's."""

    approximate = "none"


class FFN(nn.Module):
    """A gated FFN with unusual attribute names."""

    def __init__(self, hidden: int, neurons: int, activation: nn.Module | None = None, parts: int = 1) -> None:
        super().__init__()
        self.first = Linear(hidden, 2 * neurons)
        self.squash = activation or SiluAndMul()
        self.last = Linear(neurons, hidden, parts)


class Layer(nn.Module):
    """A decoder layer with attention and any FFN."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.attention = Linear(16, 48)
        self.ffn = ffn


def model_of(*ffns: nn.Module) -> nn.Module:
    """A model with vLLM's module names: blocks.NUMBER.ffn."""
    model = nn.Module()
    model.blocks = nn.ModuleList(Layer(ffn) for ffn in ffns)
    return model


@pytest.mark.parametrize("neurons", [40, 16, 32, 8])
def test_ffns_are_found_by_structure(neurons: int) -> None:
    """Names do not matter, nor does an intermediate size that equals the hidden size, twice or half of it."""
    found = find_gated_ffns(model_of(*(FFN(16, neurons) for _ in range(3))), 3)
    assert [(ffn.layer_id, ffn.name, ffn.attribute) for ffn in found] == [
        (layer, f"blocks.{layer}.ffn", "squash") for layer in range(3)
    ]
    assert {(ffn.intermediate_size, ffn.intermediate_size_per_partition, ffn.spec.kind) for ffn in found} == {
        (neurons, neurons, "silu")
    }
    assert isinstance(getattr(found[0].parent, found[0].attribute), SiluAndMul)


def test_an_ffn_of_two_layers_is_refused() -> None:
    """Weight sharing across layers is refused and names both layers, for an FFN and a whole block. An activation may be
    shared."""
    ffn, layer = FFN(16, 32), Layer(FFN(16, 32))
    with pytest.raises(UnsupportedModelError, match=r"shares blocks\.0\.ffn as blocks\.2\.ffn among layers"):
        find_gated_ffns(model_of(ffn, FFN(16, 32), ffn), 3)
    model = model_of()
    model.blocks = nn.ModuleList([layer, layer])
    with pytest.raises(UnsupportedModelError, match=r"shares blocks\.0 as blocks\.1 among layers"):
        find_gated_ffns(model, 2)
    one = SiluAndMul()
    assert len(find_gated_ffns(model_of(FFN(16, 32, one), FFN(16, 32, one)), 2)) == 2


def test_a_model_of_the_transformers_backend_is_refused_with_a_hint() -> None:
    """The backend merges separate gate and up projections; where it does not, the gate is not exposed."""
    model = type("TransformersForCausalLM", (nn.Module,), {})()
    model.blocks = nn.ModuleList([nn.Identity()])
    with pytest.raises(UnsupportedModelError, match="Transformers backend, which exposes gates only if it merges"):
        find_gated_ffns(model, 1)


def test_layers_are_in_the_order_of_their_numbers() -> None:
    """Layers are sorted by number (10 after 9), in whatever order modules were registered."""
    model = nn.Module()
    model.blocks = nn.ModuleDict({str(layer): Layer(FFN(16, 40)) for layer in reversed(range(12))})
    assert [ffn.layer_id for ffn in find_gated_ffns(model, 12)] == list(range(12))


def test_a_shared_activation_module_is_found_in_every_layer() -> None:
    """In models that share one activation object (Gemma), each layer still has its own FFN."""
    shared = GeluAndMul()
    found = find_gated_ffns(model_of(FFN(16, 40, shared), FFN(16, 40, shared)), 2)
    assert [ffn.layer_id for ffn in found] == [0, 1]
    assert found[0].parent is not found[1].parent
    assert found[0].spec.kind == "gelu"


def test_a_rank_knows_its_own_width() -> None:
    """Under tensor parallelism, the rank's width and the layer's width are distinct."""
    found = find_gated_ffns(model_of(FFN(16, 40, parts=2)), 1)
    assert (found[0].intermediate_size, found[0].intermediate_size_per_partition) == (40, 20)


def test_vllms_own_activations_are_found() -> None:
    """The names of supported and refused classes exist in the installed vLLM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises warnings
        from vllm.model_executor.layers import activation as layers

    gated = {name for name in vars(layers) if "AndMul" in name or name == "MulAndSilu"}
    assert gated == GATED | set(REFUSED_ACTIVATIONS), "an activation is neither supported nor refused"
    real = layers.SiluAndMul.__new__(layers.SiluAndMul)  # its own __init__ needs a vLLM configuration
    nn.Module.__init__(real)
    assert find_gated_ffns(model_of(FFN(16, 40, real)), 1)[0].spec.kind == "silu"


def class_named(name: str, *bases: type) -> Any:
    return type(name, bases or (nn.Module,), {})


def without_gate() -> nn.Module:
    ffn = FFN(16, 40)
    ffn.squash = class_named("ReLU")()
    ffn.first = Linear(16, 40)
    return ffn


def two_in_a_layer() -> nn.Module:
    both = nn.Module()
    both.one, both.other = FFN(16, 40), FFN(16, 40)
    return both


def linears_that_do_not_fit() -> nn.Module:
    ffn = FFN(16, 40)
    ffn.last = Linear(39, 16)
    return ffn


def experts(name: str, *bases: type) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        ffn = FFN(16, 40)
        ffn.experts = class_named(name, *bases)()
        return ffn

    return make


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no gate": (without_gate, r"each of the 2 decoder layers; Module has none in layers 1"),
    "no FFN": (nn.Identity, r"has none in layers 1"),
    "two in a layer": (two_in_a_layer, r"one gated FFN per layer; Module has several in layers 1"),
    "another width": (lambda: FFN(16, 48), r"layers must have one width; this model has widths \[40, 48\]"),
    "another activation": (lambda: FFN(16, 40, GeluAndMul()), r"one activation; this model has \['gelu', 'silu'\]"),
    "another layout": (
        lambda: FFN(16, 40, class_named("MulAndSilu")()),
        r"one activation; this model has \['silu', 'silu \(layout=second\)'\]",
    ),
    "no fixed threshold": (
        lambda: FFN(16, 40, class_named("GeluAndMulSparse")()),
        r"GeluAndMulSparse cannot be captured: its threshold is a statistic of the row",
    ),
    "linears": (linears_that_do_not_fit, r"blocks.1.ffn \(FFN\) has 2 linear layers that do not match"),
    "FusedMoE": (experts("FusedMoE"), r"blocks.1.ffn.experts \(FusedMoE\) is of another kind"),
    "a kind of MoERunner": (
        experts("Mine", class_named("MoERunner", nn.Module)),
        r"\(Mine\) is of another kind",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_captured_are_refused(case: str) -> None:
    """A second layer of an unsupported kind is refused with a reason."""
    make, reason = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        find_gated_ffns(model_of(FFN(16, 40), make()), 2)


def test_a_model_without_any_ffn_is_refused() -> None:
    """A model with no gated FFN is refused, even if it has more layers than a message lists."""
    with pytest.raises(
        UnsupportedModelError, match=r"none in layers 0, 1, 2, 3, 4, 5, 6, 7, …\. Models without a gate"
    ):
        find_gated_ffns(model_of(*(without_gate() for _ in range(12))), 12)


def test_a_tower_of_more_layers_is_not_mistaken_for_the_decoder() -> None:
    """Gated FFNs in more layers than the decoder has belong to another part, such as a vision tower."""
    with pytest.raises(UnsupportedModelError, match=r"belong to the 2 decoder layers; Module has some in layers 2, 3"):
        find_gated_ffns(model_of(*(FFN(16, 40) for _ in range(4))), 2)


@pytest.mark.parametrize("name", ["model.layers.3.mlp.0", "model.mlp"])
def test_a_name_without_exactly_one_number_is_refused(name: str) -> None:
    """The layer number is the only number in a module's name; none or two are ambiguous."""
    with pytest.raises(UnsupportedModelError, match="must hold one number, the layer's"):
        layer_number(name)
