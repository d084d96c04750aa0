"""Tiny random models: their properties, and reproducibility by seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparcom_cli.model import model as model_command
from sparcom_data.errors import ModelUnavailableError, UnknownModelError
from sparcom_models import ARCHITECTURES, folder, make_tiny_model
from sparcom_models.fetch import hub
from sparcom_models.testing import write_small_tokenizer
from sparcom_models.tiny.families import MOE_ARCHITECTURES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    """The error for an unknown name lists the known names."""
    with pytest.raises(UnknownModelError, match=r"llama, mistral, qwen2, gemma, olmo2, smollm3, opt, .*; it is 'bert'"):
        make_tiny_model("bert", tmp_path / "m")


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer of 60 tokens."""
    return write_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_tiny(small_tokenizer: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a tiny model with the small tokenizer."""

    def make(architecture: str = "llama", name: str = "tiny", **options: Any) -> Path:
        return make_tiny_model(architecture, tmp_path / name, tokenizer=small_tokenizer, **options).path

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tiny_model_has_the_requested_properties(architecture: str, make_tiny: Callable[..., Path]) -> None:
    """Each architecture loads in float32, with the requested FFN width and the tokenizer's vocabulary and EOS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(make_tiny(architecture))
    assert model.config.model_type == architecture.replace("-", "_")
    assert model.dtype == torch.float32
    widths = {
        size for name, tensor in model.named_parameters() if "layers" in name or ".h." in name for size in tensor.shape
    }
    assert (112 if architecture in MOE_ARCHITECTURES else 176) in widths
    assert model.config.vocab_size == 60
    assert model.config.eos_token_id == 1
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_gates_of_a_tiny_model_are_spread(make_tiny: Callable[..., Path]) -> None:
    """Gate pre-activations lie well away from zero on both sides, so that rounding decides few bits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(make_tiny())
    gates: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _module, _inputs, output: gates.append(output.detach()))
    model(torch.arange(3, 60)[None])
    values = torch.stack(gates)
    assert values.shape == (3, 1, 57, 176)
    assert 1 < values.std() < 4
    assert 0.4 < (values > 0).float().mean() < 0.6


class RecordedRouting:
    """Top-k ids and weights (tokens, top_k) of each MoE layer of a model."""

    def __init__(self, model: Any) -> None:
        self.ids: dict[int, Any] = {}
        self.weights: dict[int, Any] = {}
        for layer, block in enumerate(model.model.layers):
            if hasattr(block.mlp, "experts"):
                block.mlp.experts.register_forward_pre_hook(self._note(layer))

    def _note(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            self.ids[layer], self.weights[layer] = inputs[1].detach(), inputs[2].detach()

        return hook


LAYERS_EXPERTS_TOP_K = {
    "qwen2-moe": ([0, 2], 60, 4),
    "qwen3-moe": ([1], 16, 4),
    "mixtral": ([0, 1, 2], 8, 2),
    "olmoe": ([0, 1, 2], 16, 4),
    "deepseek-v2": ([1, 2], 16, 4),
}


@pytest.mark.parametrize("architecture", LAYERS_EXPERTS_TOP_K)
def test_routers_of_a_tiny_moe_model_depend_on_the_input(architecture: str, make_tiny: Callable[..., Path]) -> None:
    """The family's layers are MoE layers. Each token has distinct experts and distinct weights, and most experts get
    some token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(make_tiny(architecture))
    routing = RecordedRouting(model)
    with torch.inference_mode():
        model(torch.randint(3, 60, (1, 300), generator=torch.Generator().manual_seed(0)))
    layers, experts, top_k = LAYERS_EXPERTS_TOP_K[architecture]
    assert sorted(routing.ids) == layers
    for layer in layers:
        ids, weights = routing.ids[layer], routing.weights[layer].sort(dim=1).values
        assert ids.shape == (300, top_k)
        assert all(len(row) == top_k for row in map(set, ids.tolist()))
        assert len(ids.unique()) > experts * 0.7
        assert (weights.diff(dim=1) > 1e-6).float().mean() > 0.99


def test_weights_of_tiny_moe_models_are_normalized_as_in_their_family(make_tiny: Callable[..., Path]) -> None:
    """Normalized weights sum to 1, plain ones to less, and DeepSeek's to at most its factor of 1.5."""
    sums = {}
    for architecture in LAYERS_EXPERTS_TOP_K:
        model = transformers.AutoModelForCausalLM.from_pretrained(make_tiny(architecture, name=architecture))
        routing = RecordedRouting(model)
        model(torch.arange(3, 60)[None])
        sums[architecture] = torch.stack(list(routing.weights.values())).sum(dim=-1)
    assert torch.allclose(sums["mixtral"], torch.ones(()))
    assert torch.allclose(sums["qwen3-moe"], torch.ones(()))
    assert sums["qwen2-moe"].max() < 1
    assert sums["olmoe"].max() < 1
    assert 1 < sums["deepseek-v2"].max() < 1.5


def test_experts_of_a_tiny_moe_model_have_the_requested_width(make_tiny: Callable[..., Path]) -> None:
    """Dense and shared FFNs have one width, routed experts another; a dense model does not record the latter."""
    path = make_tiny("qwen2-moe", intermediate_size=24, moe_intermediate_size=40)
    mlps = [layer.mlp for layer in transformers.AutoModelForCausalLM.from_pretrained(path).model.layers]
    assert mlps[0].experts.down_proj.shape == (60, 128, 40)
    assert mlps[0].shared_expert.gate_proj.weight.shape == mlps[1].gate_proj.weight.shape == (24, 128)
    assert folder.read_source(path)["expert_neurons"] == 40  # type: ignore[index]
    assert "expert_neurons" not in (folder.read_source(make_tiny("llama", name="dense")) or {})


def test_a_seed_fixes_every_byte(make_tiny: Callable[..., Path]) -> None:
    """The same seed gives the same files, another seed other weights; the caller's random state is unchanged."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = make_tiny(name="a"), make_tiny(name="b"), make_tiny(name="c", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert (first / folder.SOURCE).read_text() == (second / folder.SOURCE).read_text()
    assert folder.sha256_of(first / hub.WEIGHTS) != folder.sha256_of(other / hub.WEIGHTS)


def test_a_tiny_model_does_not_replace_another(make_tiny: Callable[..., Path]) -> None:
    """The same recipe again does nothing; another recipe in the same folder is refused, naming the difference."""
    before = (make_tiny() / hub.WEIGHTS).stat().st_mtime_ns
    assert (make_tiny() / hub.WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(ModelUnavailableError, match="seed 0 instead of seed 3"):
        make_tiny(seed=3)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """A missing tokenizer.json is an error before any work."""
    with pytest.raises(ModelUnavailableError, match=r"tokenizer\.json"):
        make_tiny_model("llama", tmp_path / "tiny", tokenizer=tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_the_command_reports_the_result(small_tokenizer: Path, tmp_path: Path) -> None:
    """`sparcom model tiny` prints the path of the model, and the second time that there is nothing to do."""
    arguments = ["tiny", "llama", "--output", str(tmp_path / "t"), "--tokenizer", str(small_tokenizer)]
    first = CliRunner().invoke(model_command, arguments, catch_exceptions=False)
    second = CliRunner().invoke(model_command, arguments, catch_exceptions=False)
    assert first.stdout == f"Made {tmp_path / 't'} (random llama, seed 0)\n"
    assert second.stdout.startswith("Nothing to do: ")
