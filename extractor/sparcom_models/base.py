"""The base model of `moefy` and `tune`: find, check, load and hash it, and copy the unchanged files.

Refuses unknown types, and missing weights, which would be random. Runs no code from a model folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError, UnsupportedModelError
from sparcom_models import folder
from sparcom_models.fetch.fetch import fetch_model
from sparcom_models.fetch.known import DEMO_MODEL, KNOWN
from sparcom_models.quiet import hide_progress_bars

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
)
# Copied byte for byte, so that every program reads a tuned model like its base.
SMALL_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json")


def find_base(model: str | Path | None, on_progress: folder.ProgressCallback) -> Path:
    """Return a model's folder. Fetches a known model (default: the demo model) if it is not on disk."""
    path = Path(model or DEMO_MODEL)
    if not path.is_dir() and str(path) in KNOWN:
        path = fetch_model(str(path), on_progress=on_progress).path
    if not path.is_dir():
        raise ModelUnavailableError(
            f"A base model must be a folder or one of {', '.join(KNOWN)}; {str(path)!r} is not. Give another --model."
        )
    return path


def load_config(path: Path) -> Any:
    """Return the transformers configuration of a folder's model, or raise `ModelUnavailableError`."""
    from transformers import AutoConfig

    try:
        json.loads((path / "config.json").read_text())
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelUnavailableError(
            f"A base model must be a folder with a config.json that transformers supports; {path}: {reason}. "
            "Give another --model."
        ) from error


def require_trainable(path: Path, config: Any) -> None:
    """Raise `UnsupportedModelError` unless the model is an unquantized causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if quantization := getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"Quantized weights cannot be fine-tuned; those of {path} are quantized ({quantization}). "
            "Give the model in float32, float16 or bfloat16."
        )
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    stated = list(getattr(config, "architectures", None) or [])
    if model_class is None or (stated and model_class.__name__ not in stated):
        raise UnsupportedModelError(
            f"Only a causal language model can be tuned on text; {path} is "
            f"{' and '.join(stated) or repr(config.model_type)}. Give another --model."
        )


def load_model(path: Path, **options: Any) -> Any:
    """Load a causal language model on the CPU, by default in the dtype of its file.

    Raises `ModelUnavailableError` if it cannot be loaded or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    options = {"dtype": "auto", "trust_remote_code": False, "local_files_only": True} | options
    try:
        with hide_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelUnavailableError(f"The model in {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        raise ModelUnavailableError(
            f"A base model must have all weights; {path} lacks {len(missing)}, which would be random: "
            f"{', '.join(missing[:3])}. Fetch or convert it again, or give another --model."
        )
    return model


def save_model(model: Any, dtypes: dict[str, Any], target: Path) -> None:
    """Write the configuration, and the weights in the given dtypes."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    with hide_progress_bars():
        model.save_pretrained(target)


def weights_sha256(path: Path) -> str:
    """Return one SHA-256 over the SHA-256s of all safetensors files."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        rule = "A base model must have its weights in safetensors files"
        raise ModelUnavailableError(f"{rule}; {path} has none. Give another --model.")
    return hashlib.sha256(json.dumps([folder.sha256_of(file) for file in files]).encode()).hexdigest()


def name_of(path: Path) -> str:
    """Return the name in SOURCE.json, or else that of the folder."""
    return str((folder.read_source(path) or {}).get("name", path.resolve().name))


def provenance_of(path: Path) -> dict[str, Any]:
    """Return licence and origin for SOURCE.json; most licences require changed models to name their base."""
    source = folder.read_source(path) or {}
    kept = ("repository", "revision", "origin", "conversion", "base")
    return {
        "licence": source.get("licence", "that of the base model"),
        "base": {"name": name_of(path), **{key: source[key] for key in kept if key in source}},
    }


def copy_files(base: Path, target: Path, names: Sequence[str]) -> None:
    """Copy those of the named files that exist, byte for byte."""
    for name in names:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
