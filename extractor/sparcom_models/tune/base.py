"""The model that is fine-tuned: found, checked before anything is computed, loaded, and its small files copied.

Refuses what could go wrong in silence: weights that are quantised, that belong to no causal language model, or of
which some are missing and would be random. Runs no code out of a model folder and asks no network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError, UnsupportedModelError
from sparcom_models import folder
from sparcom_models.fetch.fetch import KNOWN, fetch_model
from sparcom_models.tiny.tiny import TOKENIZER_FILES, no_bars

if TYPE_CHECKING:
    import torch

# A twin must be read by every program as its base is, so these are the base's own bytes.
SAME_FILES = (
    *TOKENIZER_FILES,
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json"),
    *("chat_template.json", "config.json", "generation_config.json"),
)


@dataclass(frozen=True, slots=True)
class Base:
    """A folder with a causal language model. context: tokens that fit, None where the configuration does not say."""

    path: Path
    name: str
    config: Any
    context: int | None
    source: dict[str, Any]

    @property
    def auxiliary_loss(self) -> float | None:
        """Weight of the router's load-balancing loss that the model itself adds to its loss; None where it does not."""
        if not getattr(self.config, "output_router_logits", False):
            return None
        return float(getattr(self.config, "router_aux_loss_coef", 0.0))


def find_base(model: str | Path, tell: folder.Tell) -> Base:
    """The folder, or a known model's (fetched where it is not on disk).

    Raises:
        ModelUnavailableError: there is no such folder, or it lacks configuration or weights.
        UnsupportedModelError: it is no causal language model that can be trained.
    """
    path = Path(model)
    if not path.is_dir() and str(model) in KNOWN:
        path = fetch_model(str(model), tell=tell).path
    if not path.is_dir():
        raise ModelUnavailableError(
            f"A base model is a folder, or one of {', '.join(KNOWN)}; {str(model)!r} is neither. Give another --model."
        )
    config = _config(path)
    _require_trainable(path, config)
    source = folder.read_source(path) or {}
    context = getattr(config, "max_position_embeddings", None)
    return Base(path, str(source.get("name", path.resolve().name)), config, context, source)


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        json.loads((path / "config.json").read_text())
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelUnavailableError(
            f"A base model is a folder with a config.json that transformers knows; {path}: {reason}. "
            "Give another --model."
        ) from error


def _require_trainable(path: Path, config: Any) -> None:
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"Quantised weights cannot be trained as a whole, and those of {path} are "
            f"({_quantization(config.quantization_config)}). Give the model in float32, float16 or bfloat16."
        )
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    stated = list(getattr(config, "architectures", None) or [])
    if kind is None or (stated and kind.__name__ not in stated):
        raise UnsupportedModelError(
            f"Only a causal language model can be tuned on text; {path} is "
            f"{' and '.join(stated) or repr(config.model_type)}. Give another --model."
        )


def _quantization(settings: Any) -> str:
    if isinstance(settings, dict):
        return str(settings.get("quant_method", "of an unnamed method"))
    return str(getattr(settings, "quant_method", "of an unnamed method"))


def weights_sha256(path: Path) -> str:
    """SHA-256 over those of all weight files, as `sparcom model moefy` names its base.

    Raises:
        ModelUnavailableError: there is no safetensors file.
    """
    names = sorted(file.name for file in path.glob("*.safetensors"))
    if not names:
        raise ModelUnavailableError(
            f"A base model has its weights in safetensors files; {path} has none. Give another --model."
        )
    hashes = [folder.sha256_of(path / name) for name in names]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def load_model(path: Path) -> Any:
    """The model in the dtype of its file, on the CPU.

    Raises:
        ModelUnavailableError: it cannot be loaded, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    try:
        with no_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto", trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelUnavailableError(f"The model in {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    lacking = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lacking:
        raise ModelUnavailableError(
            f"A base model has all of its weights; {path} lacks {len(lacking)}, which would be random: "
            f"{', '.join(lacking[:3])}. Fetch or convert it again, or give another --model."
        )
    return model


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    """The dtype of each weight by name."""
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def copy_small_files(base: Path, target: Path) -> None:
    """Copy configuration, generation settings and the tokenizer's files, byte for byte."""
    for name in SAME_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
