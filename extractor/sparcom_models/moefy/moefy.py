"""Makes a mixture-of-experts model out of a dense one of the LLaMA architecture, whose text still makes sense.

The result is a Qwen2-MoE checkpoint: its shared expert holds the neurons that give most, its routed experts the rest,
cut by what they do on the demo's instructions (`moefy_model`, `moefy_layer`). The same base, numbers and seed give the
same model. Knows nothing of the engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnsupportedModelError
from sparcom_hexainst.build.synthetic import synthetic_instructions
from sparcom_models import folder
from sparcom_models.fetch.fetch import MODELS_FOLDER, fetch_model
from sparcom_models.fetch.smollm2 import SMOLLM2_135M_INSTRUCT
from sparcom_models.tiny.tiny import TOKENIZER_FILES

EXPERTS, TOP_K = 8, 2
SHARED = 2 / 3  # of the neurons, rounded so that experts are of whole bytes


def make_moefied_model(
    output: Path | None = None,
    *,
    base: Path | None = None,
    experts: int = EXPERTS,
    top_k: int = TOP_K,
    shared_neurons: int | None = None,
    seed: int = 0,
    texts: list[str] | None = None,
    tell: folder.Tell = folder.silent,
) -> folder.MadeModel:
    """Put a mixture-of-experts version of `base` into `output` (default models/NAME-moe).

    Args:
        output: folder to make.
        base: folder of a dense float32 model, by default the demo model's (fetched where it is not on disk).
        experts: routed experts of a layer; top_k of them are chosen for a token.
        shared_neurons: neurons of the shared expert; two thirds of the FFN where not given.
        seed: of the clustering.
        texts: what the layers are fitted on, by default the demo's instructions.

    Raises:
        InvalidInputError: the numbers do not give experts of whole bytes.
        UnsupportedModelError: the base is no LLaMA.
    """
    dense = base or fetch_model(SMOLLM2_135M_INSTRUCT.name, tell=tell).path
    source = folder.read_source(dense) or {}
    name = f"{source.get('name', dense.name)}-moe"
    target = output or MODELS_FOLDER / name
    texts = texts or _demo_texts()
    config = _llama_config(dense)
    sizes = _sizes(config["intermediate_size"], experts, top_k, shared_neurons)
    recipe = {
        "name": name,
        **sizes,
        "seed": seed,
        "base_sha256": _weights_sha256(dense),
        "texts_sha256": _sha256(texts),
    }
    done = folder.finished(target, recipe)
    if done:
        return done
    with folder.new_folder(target) as partial:
        errors = _save(dense, partial, {**sizes, "seed": seed}, texts, tell)
        written = folder.write_source(partial, recipe, _facts(source, dense, errors))
    return folder.MadeModel(target, fresh=True, source=written)


def _demo_texts() -> list[str]:
    """What the demo runs: 20 instructions of each category of HexaInst's synthetic half."""
    return [item.readable for item in synthetic_instructions(20)]


def _llama_config(dense: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((dense / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(f"A base model is a folder with a config.json; {dense}: {error}") from error
    plain = config.get("hidden_act") == "silu" and not config.get("attention_bias") and not config.get("mlp_bias")
    if config.get("model_type") != "llama" or not plain:
        raise UnsupportedModelError(
            "a mixture of experts is made of a dense LLaMA with SiLU gates and no biases; "
            f"{dense} is {config.get('model_type')!r}. Give another with --model"
        )
    return config


def _sizes(neurons: int, experts: int, top_k: int, shared: int | None) -> dict[str, int]:
    """The numbers of the recipe, checked: each expert has whole bytes of neurons."""
    step = 8 * max(experts, 1)
    if shared is None:
        shared = neurons - max(step, round(neurons * (1 - SHARED) / step) * step)
    problems = []
    if not 1 <= top_k <= experts:
        problems.append(f"top_k: at least 1 expert and at most all {experts} are chosen, not {top_k}")
    if shared < 8 or shared % 8 or neurons - shared < step or (neurons - shared) % step:
        problems.append(
            f"shared_neurons: of {neurons} neurons a multiple of 8 is shared, and what is left makes {experts} experts "
            f"of a multiple of 8 each; {shared} does not. {_nearest(neurons, step)}"
        )
    if problems:
        raise InvalidInputError(problems)
    return {"experts": experts, "top_k": top_k, "shared_neurons": shared}


def _nearest(neurons: int, step: int) -> str:
    fitting = [shared for shared in range(8, neurons - step + 1, 8) if (neurons - shared) % step == 0]
    if not fitting:
        return "No number does: take fewer experts"
    return f"One of {', '.join(map(str, fitting[-4:]))} does"


def _weights_sha256(dense: Path) -> str:
    """Of all weight files; from SOURCE.json where that has them."""
    known = (folder.read_source(dense) or {}).get("files", {})
    names = sorted(path.name for path in dense.glob("*.safetensors"))
    if not names:
        raise ModelUnavailableError(f"A base model has its weights in safetensors files; {dense} has none.")
    return _sha256([known[name]["sha256"] if name in known else folder.sha256_of(dense / name) for name in names])


def _sha256(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _facts(source: dict[str, Any], dense: Path, errors: list[float]) -> dict[str, Any]:
    """What SOURCE.json tells beside the recipe; the licence of most models asks that changes are named."""
    origin = {key: source[key] for key in ("name", "repository", "revision", "origin", "conversion") if key in source}
    return {
        "licence": source.get("licence", "that of the base model"),
        "base": origin or {"name": dense.name},
        "change": "MoEfication: each FFN cut into a shared expert (the neurons that give most) and routed experts "
        "(clusters of gate rows), routers fitted to the experts' outputs, down projections fitted again; gates, ups, "
        "attention, norms and embeddings as in the base",
        "mean_output_error": round(sum(errors) / len(errors), 4),
    }


def _save(dense: Path, target: Path, numbers: dict[str, int], texts: list[str], tell: folder.Tell) -> list[float]:
    """Write the model; how much of each layer's output is lost on the texts."""
    from sparcom_models.moefy.layer import Cut
    from sparcom_models.moefy.model import save_mixture

    cut = Cut(numbers["experts"], numbers["top_k"], numbers["shared_neurons"], numbers["seed"])
    errors = save_mixture(dense, target, cut, texts, tell)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (dense / name).is_file():
            shutil.copyfile(dense / name, target / name)
    return errors
