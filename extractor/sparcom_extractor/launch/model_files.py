"""Check a model's name and files without an engine. Takes milliseconds, and imports neither torch nor vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.versions import quantization_methods

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
INDEX = "model.safetensors.index.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_MODEL = "model must be a folder or a name on the Hugging Face hub"
_GGUF = (
    "{} holds a GGUF model; its quantized weights do not expose neurons. Give the folder of the original model, with "
    "config.json and *.safetensors, or convert it in transformers with from_pretrained(folder, gguf_file=...)"
)


def check_model(settings: EngineSettings) -> None:
    """Raise InvalidInputError listing every problem in names and files that would keep the model from loading."""
    problems = _model_problems(settings)
    known, quantization = quantization_methods(), settings.quantization
    if quantization is not None and known and quantization not in known:
        problems.append(
            f"quantization must be a method of the installed vLLM: {', '.join(known)}; it is {quantization!r}. "
            "Omit it if the checkpoint's config.json names the method"
        )
    if problems:
        raise InvalidInputError(problems)


def _model_problems(settings: EngineSettings) -> list[str]:
    model, path = settings.model, Path(settings.model)
    if path.suffix == ".gguf":
        return [f"{_MODEL}; {_GGUF.format(model)}"]
    if path.is_file():
        return [f"{_MODEL}; {model} is a file. Give the folder that contains it"]
    if not path.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            return [f"{_MODEL}; {model} is not a folder. Check the path"]
        return []
    if settings.revision is not None:
        return [f"revision needs a name on the Hugging Face hub; {model} is a folder. Omit it, or give a hub name"]
    return _folder_problems(path, settings.load_format)


def _folder_problems(path: Path, load_format: str) -> list[str]:
    if not (path / "config.json").is_file():
        if any(path.glob("*.gguf")):
            return [_GGUF.format(path)]
        return [f"a model's folder must hold config.json; {path} does not. Give a folder that from_pretrained accepts"]
    problems = []
    if read_object(path / "config.json") is None:
        problems.append(f"config.json must hold one JSON object; that of {path} does not. Fetch the model again")
    if load_format == "dummy":
        return problems
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        problems.append(
            f"a model's folder must hold weights ({', '.join(WEIGHTS)}); {path} has none. Fetch the model again"
        )
    elif missing := ", ".join(_missing_shards(path)):
        problems.append(f"all files named in {INDEX} must exist; {path} lacks {missing}. Fetch the model again")
    return problems


def _missing_shards(path: Path) -> list[str]:
    shards = (read_object(path / INDEX) or {}).get("weight_map")
    named = set(shards.values()) if isinstance(shards, dict) else set()
    return sorted(name for name in named if isinstance(name, str) and not (path / name).is_file())


def read_object(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it cannot be read or holds something else."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def lacks_chat_template(model: str) -> bool:
    """Return whether the tokenizer of a model's folder is known to have no chat template."""
    path = Path(model)
    config = read_object(path / "tokenizer_config.json")
    return config is not None and not (config.get("chat_template") or any((path / n).exists() for n in TEMPLATE_FILES))
