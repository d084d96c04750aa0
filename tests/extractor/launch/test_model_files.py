"""A model's name and folder are checked before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_extractor.launch.model_files import check_model, lacks_chat_template
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.versions import quantization_methods

FILES = {"config.json": "{}", "model.safetensors": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a model folder with these files; content None omits a file."""

    def make(**changes: str | None) -> Path:
        for name, content in {**FILES, **{name.replace("__", "."): text for name, text in changes.items()}}.items():
            if content is not None:
                (tmp_path / name).write_text(content)
        return tmp_path

    return make


def message_for(model: Path | str, **settings: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        check_model(EngineSettings(model=str(model), **settings))  # type: ignore[arg-type]
    return str(caught.value)


def test_a_folder_and_a_name_pass(folder: Callable[..., Path]) -> None:
    """A complete folder, a hub name and a revision of one pass."""
    check_model(EngineSettings(model=str(folder())))
    check_model(EngineSettings(model="org/name", revision="main"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config__json": None}, "a model's folder must hold config.json; "),
        ({"config__json": None, "m__gguf": ""}, "holds a GGUF model; its quantized weights do not expose neurons"),
        ({"config__json": "{"}, "config.json must hold one JSON object"),
        ({"config__json": "[]"}, "config.json must hold one JSON object"),
        ({"model__safetensors": None}, "a model's folder must hold weights (*.safetensors, *.bin, *.pt)"),
    ],
)
def test_a_folder_that_is_not_a_model_is_refused(
    changes: dict[str, str | None], sentence: str, folder: Callable[..., Path]
) -> None:
    """The error has the rule and the folder."""
    path = folder(**changes)
    assert sentence in message_for(path)
    assert str(path) in message_for(path)


def test_a_missing_shard_is_named(folder: Callable[..., Path]) -> None:
    """The index names two files; the missing one is in the error."""
    shards = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    path = folder()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "lacks model-2.safetensors. Fetch" in message_for(path)
    check_model(EngineSettings(model=str(path), load_format="dummy"))


@pytest.mark.parametrize("model", ["/no/such", "./no", "a/b/c", "~/no"])
def test_a_path_that_is_not_a_folder_is_refused(model: str) -> None:
    """A name that can only be a path is not looked up on the hub."""
    assert f"{model} is not a folder" in message_for(model)


def test_incompatible_files_and_settings_are_refused(folder: Callable[..., Path]) -> None:
    """A GGUF file, another file, a revision of a folder and an unknown quantization method are refused."""
    path = folder()
    assert "holds a GGUF model" in message_for("org/name.gguf")
    assert "config.json is a file" in message_for(path / "config.json")
    assert "revision needs a name on the Hugging Face hub" in message_for(path, revision="v1")
    assert "quantization must be a method of the installed vLLM: " in message_for(path, quantization="zip")
    check_model(EngineSettings(model=str(path), quantization="fp8"))


def test_the_methods_are_vllms_own() -> None:
    """The methods read from the source equal those of the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises warnings
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    assert list(quantization_methods()) == QUANTIZATION_METHODS


def test_a_chat_template_is_looked_for_where_tokenizers_keep_it(folder: Callable[..., Path]) -> None:
    """The template may be in the tokenizer's configuration or in a file of the folder. Without a configuration nothing
    is known."""
    path = folder()
    assert not lacks_chat_template(str(path))
    (path / "tokenizer_config.json").write_text("{}")
    assert lacks_chat_template(str(path))
    (path / "chat_template.jinja").write_text("x")
    assert not lacks_chat_template(str(path))
    (path / "chat_template.jinja").unlink()
    (path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert not lacks_chat_template(str(path))
    assert not lacks_chat_template("org/name")


def test_the_checks_import_neither_torch_nor_vllm() -> None:
    """The checks answer in less than a second, from the command line too."""
    code = (
        "import sys; from sparcom_extractor.launch.model_files import check_model\n"
        "from sparcom_extractor.settings import EngineSettings\n"
        "import sparcom_extractor.prompts, sparcom_cli.extract, sparcom_cli.serve\n"
        "check_model(EngineSettings(model='m', quantization='fp8'))\n"
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
