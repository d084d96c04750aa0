"""An MoE model made from a dense model keeps all neurons and nearly the same output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sparcom_cli.model import model as model_command
from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnsupportedModelError
from sparcom_models import folder, make_moefied_model, make_tiny_model
from sparcom_models.moefy.clusters import balanced_clusters
from sparcom_models.testing import write_small_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["A Bx c De f", "Zy X w Vut S r", "ABCDEFG hij", "k L m n O p Q", "qrs TUV wxy AA b"]


def test_clusters_are_balanced_and_found() -> None:
    """Rows around four directions, of any length and order, become four clusters of equal size."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(4), 12))
    rows = (np.eye(4, 9)[truth] + 0.05 * rng.standard_normal((48, 9))) * rng.uniform(0.1, 9, (48, 1))
    labels = balanced_clusters(rows.astype(np.float32), 4, seed=1)
    assert np.bincount(labels).tolist() == [12] * 4
    assert all(len(set(labels[truth == direction])) == 1 for direction in range(4))


def test_clusters_of_unbalanced_rows_are_balanced() -> None:
    """Rows of one direction are split into equal clusters; the same seed gives the same clusters."""
    rows = np.ones((24, 3), np.float32)
    rows[:3] = 0
    labels = balanced_clusters(rows, 3, seed=0)
    assert np.bincount(labels).tolist() == [8] * 3
    assert np.array_equal(labels, balanced_clusters(rows, 3, seed=0))


@pytest.mark.parametrize("clusters", [0, 5, 25])
def test_clusters_of_unequal_size_are_refused(clusters: int) -> None:
    """The number of clusters must divide the number of rows."""
    with pytest.raises(InvalidInputError, match=f"24 rows cannot be split into {clusters}"):
        balanced_clusters(np.ones((24, 3), np.float32), clusters, seed=0)


def random_ffn(neurons: int = 96, hidden: int = 24) -> Any:
    from sparcom_models.moefy.ffn import Ffn

    made = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(shape, generator=made) for shape in [(neurons, hidden)] * 2 + [(hidden, neurons)])
    return Ffn(gate * 0.5, up * 0.5, down)


def random_inputs(rows: int = 400, hidden: int = 24) -> Any:
    return torch.randn(rows, hidden, generator=torch.Generator().manual_seed(1))


def test_every_neuron_is_in_one_place() -> None:
    """Shared and routed experts have each neuron of the dense FFN once, with unchanged gate and up projections."""
    from sparcom_models.moefy.ffn import SplitSizes, split_ffn

    ffn = random_ffn()
    made = split_ffn(ffn, random_inputs(), SplitSizes(experts=4, top_k=2, shared=32, seed=0))
    assert made.neurons.shape == (4, 16)
    gates = torch.cat([made.shared.gate, *(expert.gate for expert in made.experts)])
    assert torch.equal(gates.sort(dim=0).values, ffn.gate.sort(dim=0).values)
    for expert, neurons in zip(made.experts, made.neurons, strict=True):
        assert torch.equal(expert.gate, ffn.gate[neurons])
        assert torch.equal(expert.up, ffn.up[neurons])
        assert expert.down.shape == (24, 16)


def test_the_shared_expert_has_the_largest_contributions() -> None:
    """A strengthened neuron is shared, a weakened one is not."""
    from sparcom_models.moefy.ffn import SplitSizes, split_neurons

    ffn = random_ffn()
    ffn.down[:, 70], ffn.down[:, 5] = 50.0, 0.0
    inputs = random_inputs()
    shared, groups = split_neurons(ffn, ffn.activations(inputs), SplitSizes(experts=4, top_k=2, shared=32, seed=0))
    assert 70 in shared
    assert 5 in groups
    assert sorted([*shared.tolist(), *groups.flatten().tolist()]) == list(range(96))


def test_the_router_finds_the_largest_experts() -> None:
    """If the norm of an expert's output is linear in the input, the top-k experts have the largest norms. The logits
    per token have the requested standard deviation."""
    from sparcom_models.moefy.ffn import LOGIT_STD, combine_weights, fit_router

    inputs = random_inputs()
    directions = torch.randn(6, 24, generator=torch.Generator().manual_seed(2))
    lengths = inputs @ directions.T
    router = fit_router(inputs, lengths)
    weights = combine_weights(inputs, router, 2)
    assert torch.allclose(weights.sum(dim=1), torch.ones(()))
    assert ((weights > 0).sum(dim=1) == 2).all()
    found = (weights > 0).gather(1, lengths.topk(2, dim=1).indices).float().mean()
    assert found > 0.95
    logits = inputs @ router.T
    assert (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt() == pytest.approx(LOGIT_STD, rel=1e-4)


def test_using_all_experts_loses_little() -> None:
    """With all experts for every token, almost nothing is lost; with one of four, more."""
    from sparcom_models.moefy.ffn import SplitSizes, split_ffn

    errors = [
        split_ffn(random_ffn(), random_inputs(), SplitSizes(experts=4, top_k=top_k, shared=32, seed=0)).error
        for top_k in (4, 2, 1)
    ]
    assert errors[0] < errors[1] < errors[2] < 1
    assert errors[0] < 0.3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny dense LLaMA."""
    place = tmp_path_factory.mktemp("base")
    return make_tiny_model("llama", place / "tiny", tokenizer=write_small_tokenizer(place)).path


def make(base: Path, output: Path, **options: Any) -> folder.MadeModel:
    return make_moefied_model(output, base=base, texts=TEXTS, **({"experts": 4, "shared_neurons": 48} | options))


def test_a_moe_model_loads_with_the_sizes_in_its_source(base: Path, tmp_path: Path) -> None:
    """transformers loads a Qwen2-MoE of the requested sizes; SOURCE.json has recipe, licence, base and change."""
    made = make(base, tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(made.path)
    assert model.config.model_type == "qwen2_moe"
    assert model.dtype == torch.float32
    for layer in model.model.layers:
        assert layer.mlp.experts.down_proj.shape == (4, 128, 32)
        assert layer.mlp.shared_expert.gate_proj.weight.shape == (48, 128)
        assert not layer.self_attn.q_proj.bias.any()
    assert {"name": "tiny-llama-moe", "experts": 4, "top_k": 2, "shared_neurons": 48}.items() <= made.source.items()
    assert made.source["licence"] == "random weights"
    assert made.source["base"]["name"] == "tiny-llama"
    assert "MoEfication" in made.source["change"]
    assert 0 < made.source["mean_output_error"] < 1
    assert set(made.source["files"]) == {path.name for path in made.path.iterdir()} - {folder.SOURCE}


def test_the_loaded_model_has_the_recorded_error(base: Path, tmp_path: Path) -> None:
    """The loaded MoE model has the output error of SOURCE.json, relative to the dense FFNs on the same inputs."""
    dense = transformers.AutoModelForCausalLM.from_pretrained(base).model.layers
    made = make(base, tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(made.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    pairs: dict[int, list[tuple[Any, Any]]] = {}

    def note(layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[Any], output: Any) -> None:
            pairs.setdefault(layer, []).append((dense[layer].mlp(inputs[0])[0], output[0]))

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(note(number))
    with torch.inference_mode():
        for text in TEXTS:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    errors = []
    for seen in pairs.values():
        truth, found = (torch.cat(parts) for parts in zip(*seen, strict=True))
        errors.append(float((found - truth).norm() / truth.norm()))
    assert np.mean(errors) == pytest.approx(made.source["mean_output_error"], abs=2e-4)


def test_a_seed_fixes_every_byte_of_a_moe_model(base: Path, tmp_path: Path) -> None:
    """The same settings give the same files, and a second call does nothing; other settings are refused."""
    first, second = make(base, tmp_path / "a"), make(base, tmp_path / "b")
    assert first.source == second.source
    assert not make(base, tmp_path / "a").fresh
    with pytest.raises(ModelUnavailableError, match="top_k 2 instead of top_k 3"):
        make(base, tmp_path / "a", top_k=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k: must lie between 1 and the number of experts, 4; it is 5"),
        ({"shared_neurons": 52}, "it is 52. Choose one of 48, 80, 112, 144"),
        ({"shared_neurons": 56}, "it is 56"),
        ({"shared_neurons": 176}, "it is 176"),
        ({"experts": 40}, "No number fits; use fewer experts"),
    ],
)
def test_experts_of_partial_bytes_are_refused(
    options: dict[str, int], message: str, base: Path, tmp_path: Path
) -> None:
    """Each expert needs a positive multiple of 8 neurons; the error names valid numbers."""
    with pytest.raises(InvalidInputError, match=message):
        make(base, tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_two_thirds_are_shared_by_default(base: Path, tmp_path: Path) -> None:
    """The number is rounded so that the experts fit: 112 of 176 neurons, with experts of 16."""
    assert make(base, tmp_path / "m", shared_neurons=None).source["shared_neurons"] == 112


def test_only_a_plain_llama_is_split(base: Path, tmp_path: Path) -> None:
    """Another architecture and a folder without a model are refused with the reason before any work."""
    other = make_tiny_model("gemma", tmp_path / "gemma", tokenizer=base).path
    with pytest.raises(UnsupportedModelError, match="'gemma'"):
        make(other, tmp_path / "m")
    with pytest.raises(ModelUnavailableError, match=r"config\.json"):
        make(tmp_path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_command_makes_a_moe_model(base: Path, tmp_path: Path) -> None:
    """`sparcom model moefy` reports folder, sizes and output error on the demo's texts."""
    arguments = ["moefy", "--model", str(base), "--output", str(tmp_path / "m"), "--experts", "2", "--top-k", "1"]
    ran = CliRunner().invoke(model_command, arguments, catch_exceptions=False)
    assert ran.stdout.startswith(f"Made {tmp_path / 'm'} (2 experts, top-1, 112 shared neurons; ")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_experts_per_tok"] == 1
