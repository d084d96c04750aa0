"""Unsuitable bases and instructions are refused before any computation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnsupportedModelError
from sparcom_models import folder

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")
Tune = Callable[..., folder.MadeModel]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3}, "all 30 instructions are longer than 3 tokens; the shortest has 4"),
        ({"held_out": 0.01}, "0.01 of 30 usable instructions leaves 0 and 30"),
        ({"held_out": 0.99}, "leaves 30 and 0"),
        ({"max_length": 513}, "at most the model's context, 512 tokens; it is 513"),
        ({"data": "empty"}, "holds no instruction"),
        ({"data": "strange"}, "the largest is 60"),
        ({"data": "chat"}, "messages need prompt_format 'chat'"),
    ],
)
def test_instructions_that_cannot_be_tuned_on_are_refused(
    settings: dict[str, Any], message: str, place: Path, tune: Tune, tmp_path: Path
) -> None:
    """The error has rule, value and remedy, and comes before any computation."""
    contents = {
        "empty": "\n",
        "strange": '{"id": "a", "token_ids": [3, 60]}',
        "chat": '{"id": "a", "messages": [{"role": "user", "content": "A"}]}',
    }
    if "data" in settings:
        settings = {**settings, "data": tmp_path / "in.jsonl"} | {"content": contents[settings["data"]]}
        (tmp_path / "in.jsonl").write_text(settings.pop("content"))
    with pytest.raises(InvalidInputError, match=message):
        tune(tmp_path / "m", **settings)
    assert not (tmp_path / "m").exists()


def without_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


def without_a_layer(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    save_file({name: value for name, value in weights.items() if ".1.mlp." not in name}, base / "model.safetensors")


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (shutil.rmtree, ModelUnavailableError, "must be a folder or one of smollm2-135m-instruct"),
        (without_weights, ModelUnavailableError, "must have its weights in safetensors files"),
        (without_a_layer, ModelUnavailableError, "lacks 3, which would be random: model.layers.1.mlp"),
        (configured(model_type="unheard-of"), ModelUnavailableError, "config.json that transformers supports"),
        (configured(quantization_config={"quant_method": "gptq", "bits": 4}), UnsupportedModelError, "gptq"),
        (
            configured(architectures=["LlamaForSequenceClassification"]),
            UnsupportedModelError,
            "is LlamaForSequenceClassification. Give another --model",
        ),
        (configured(model_type="t5", architectures=["T5Model"]), UnsupportedModelError, "is T5Model"),
    ],
)
def test_models_that_cannot_be_tuned_are_refused(
    break_it: Callable[[Path], None], error: type[Exception], message: str, place: Path, tune: Tune, tmp_path: Path
) -> None:
    """The error has reason and remedy; a model with missing weights is never trained."""
    shutil.copytree(place / "llama", tmp_path / "base")
    break_it(tmp_path / "base")
    with pytest.raises(error, match=message):
        tune(tmp_path / "m", tmp_path / "base")
    assert not (tmp_path / "m").exists()
