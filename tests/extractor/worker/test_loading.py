"""A checkpoint that leaves parameters unwritten is refused, and the error names the missing tensors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import UnsupportedModelError

FAMILIES = ("llama", "qwen2", "qwen2-moe", "mixtral", "deepseek-v2", "phi3", "olmo2")
MADE_HERE = {"phi3": "Phi3Config", "olmo2": "Olmo2Config"}  # fused on disk; run by vLLM's Transformers backend


def make_model(kind: str, folder: Path) -> Path:
    """Make a random model that `make_tiny_model` does not support, without a tokenizer."""
    import torch
    import transformers

    config = getattr(transformers, MADE_HERE[kind])(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    from sparcom_models.quiet import hide_progress_bars

    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with hide_progress_bars():
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the loader's refusals per family and omitted tensor; see load_checkpoints.py."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {kind: make_model(kind, root / kind) if kind in MADE_HERE else tiny_model(kind) for kind in FAMILIES}
    shards = split_in_two(folders["llama"], root / "shards")
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("load_checkpoints.py"), *folders.values(), shards],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    results = json.loads(ran.stdout.splitlines()[-1])
    return {kind: results[str(folder)] for kind, folder in {**folders, "shards": shards}.items()}


def split_in_two(model: Path, folder: Path) -> Path:
    """Split the model into two files, without an index."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((tensors[::2], tensors[1::2])):
        save_file(dict(part), folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "shards"])
def test_a_checkpoint_is_refused_by_the_tensor_it_lacks(family: str, loaded: dict[str, dict[str, Any]]) -> None:
    """The complete checkpoint loads. Without one tensor, of any kind, it is refused and exactly that tensor is
    named."""
    refusals = dict(loaded[family])
    assert refusals.pop("") is None
    shortened = refusals.pop("shortened")
    wrong = {}
    for name, sentence in refusals.items():
        named = re.match(r"the checkpoint lacks ([^,]+); vLLM would run", sentence or "")
        if (named[1] if named else None) != name and name != "model.norm.weight":
            wrong[name] = sentence
    assert wrong == {}
    assert "model.norm.weight" in refusals.get("model.norm.weight", "model.norm.weight")  # vLLM's own check names it
    assert shortened.startswith("the checkpoint's tensor model.layers.1.self_attn.o_proj.weight does not fit the model")


def test_all_kinds_of_tensors_are_covered(loaded: dict[str, dict[str, Any]]) -> None:
    """The omitted tensors include halves of fused weights, biases, experts and a separate head."""
    left_out = {re.sub(r"\d+", "*", name) for refusals in loaded.values() for name in refusals}
    for part in ("mlp.up_proj.weight", "mlp.gate_proj.weight", "q_proj.bias", "mlp.experts.*.up_proj.weight"):
        assert f"model.layers.*.{part}".replace("q_proj", "self_attn.q_proj") in left_out
    for name in ("lm_head.weight", "model.layers.*.mlp.gate_up_proj.weight", "model.layers.*.mlp.gate.weight"):
        assert name in left_out


@pytest.mark.engine
@pytest.mark.slow
def test_an_engine_without_one_up_proj_is_refused(
    tiny_model: Callable[[str], Path], start_engine: Callable[..., Any], tmp_path: Path
) -> None:
    """The worker's refusal reaches the caller of `start`, in one sentence."""
    from safetensors.torch import load_file, save_file

    half = shutil.copytree(tiny_model("llama"), tmp_path / "half")
    tensors = load_file(half / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UnsupportedModelError,
        match=r"model 'half' is refused: the checkpoint lacks model\.layers\.1\.mlp\.up_proj\.weight; vLLM would",
    ):
        start_engine(half)
