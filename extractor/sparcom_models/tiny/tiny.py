"""Make tiny models with random weights, for tests that need a real engine but no real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnknownModelError
from sparcom_models import folder
from sparcom_models.base import TOKENIZER_FILES, copy_files, find_base
from sparcom_models.quiet import hide_progress_bars
from sparcom_models.tiny.families import ARCHITECTURES, MOE_ARCHITECTURES, MOE_STD, ZERO_ROUTERS, Sizes


def make_tiny_model(
    architecture: str,
    output: Path,
    *,
    seed: int = 0,
    layers: int = Sizes.layers,
    intermediate_size: int = Sizes.intermediate_size,
    moe_intermediate_size: int = Sizes.moe_intermediate_size,
    context: int = Sizes.context,
    tokenizer: Path | None = None,
    on_progress: folder.ProgressCallback = folder.no_progress,
) -> folder.MadeModel:
    """Make a random float32 model of an architecture in ARCHITECTURES. The same arguments give the same bytes.

    Args:
        context: longest sequence, in tokens.
        moe_intermediate_size: intermediate size of routed experts, if the architecture has any.
        tokenizer: folder with a tokenizer.json, by default the demo model's (fetched if it is not on disk).
    """
    if architecture not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise UnknownModelError(f"The architecture must be one of {names}; it is {architecture!r}.")
    sizes = {"layers": layers, "intermediate_size": intermediate_size, "context": context}
    if architecture in MOE_ARCHITECTURES:
        sizes["moe_intermediate_size"] = moe_intermediate_size
    if problems := [f"{name}: must be at least 1; it is {value}." for name, value in sizes.items() if value < 1]:
        raise InvalidInputError(problems)
    tokenizer = tokenizer or find_base(None, on_progress)
    if not (tokenizer / "tokenizer.json").is_file():
        needs = "A tiny model needs a folder with a tokenizer.json"
        raise ModelUnavailableError(f"{needs}; {tokenizer} has none. Give another --tokenizer.")
    on_disk = {"intermediate_size": "neurons", "moe_intermediate_size": "expert_neurons"}
    recipe = {
        "name": f"tiny-{architecture}",
        "architecture": architecture,
        "seed": seed,
        **{on_disk.get(name, name): size for name, size in sizes.items()},
        "tokenizer_sha256": folder.sha256_of(tokenizer / "tokenizer.json"),
    }
    if finished := folder.find_finished(output, recipe):
        return finished
    on_progress(f"making a tiny {architecture}")
    with folder.new_folder(output) as partial:
        copy_files(tokenizer, partial, TOKENIZER_FILES)
        _save_random(architecture, partial, seed, sizes)
        source = folder.write_source(partial, recipe, {"licence": "random weights"})
    return folder.MadeModel(output, fresh=True, source=source)


def _save_random(architecture: str, target: Path, seed: int, sizes: dict[str, Any]) -> None:
    """Write configuration and weights to `target`, which holds the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    options = ARCHITECTURES[architecture](Sizes(**sizes, tokens={"vocab_size": len(tokenizer), **tokens}))
    config = AutoConfig.for_model(architecture.replace("-", "_"), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, values in model.state_dict().items():
            if name.endswith(ZERO_ROUTERS) and not values.any():
                values.normal_(std=MOE_STD)
    with hide_progress_bars():
        model.save_pretrained(target)
