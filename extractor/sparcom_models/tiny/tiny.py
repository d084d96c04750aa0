"""Makes tiny models with random weights, for tests that need a real engine and no real model.

An architecture is a line in ARCHITECTURES, its sizes are those of tiny_sizes.py; mixtures of experts are described in
tiny_experts.py. Knows nothing of the engine; some of these it must refuse.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnknownModelError
from sparcom_models import folder
from sparcom_models.fetch.fetch import fetch_model
from sparcom_models.fetch.smollm2 import SMOLLM2_135M_INSTRUCT
from sparcom_models.tiny.experts import MOE_ARCHITECTURES
from sparcom_models.tiny.families import DENSE_FAMILIES, MOE_FAMILIES, ZERO_ROUTERS
from sparcom_models.tiny.sizes import CONTEXT, EXPERT_NEURONS, NEURONS, ROUTED_SPREAD, SPREAD, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def _llama(sizes: Sizes) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**sizes.gated)


def _mistral(sizes: Sizes) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**sizes.gated, sliding_window=None)


def _qwen2(sizes: Sizes) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**sizes.gated, use_sliding_window=False)


def _gemma(sizes: Sizes) -> Any:
    """GELU gates, and in vLLM one activation module that all layers share."""
    from transformers import GemmaConfig

    return GemmaConfig(**sizes.gated, head_dim=sizes.hidden // sizes.heads, hidden_activation="gelu_pytorch_tanh")


def _olmo2(sizes: Sizes) -> Any:
    """Norms behind the blocks. vLLM has no class of its own for it and runs it by its Transformers backend."""
    from transformers import Olmo2Config

    return Olmo2Config(**sizes.gated)


def _smollm3(sizes: Sizes) -> Any:
    """Layers without positions. Run by vLLM's Transformers backend too."""
    from transformers import SmolLM3Config

    return SmolLM3Config(**sizes.gated)


def _opt(sizes: Sizes) -> Any:
    """No gate: to be refused by a capture that knows gated FFNs only."""
    from transformers import OPTConfig

    return OPTConfig(
        **sizes.common,
        hidden_size=sizes.hidden,
        word_embed_proj_dim=sizes.hidden,
        ffn_dim=sizes.neurons,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        init_std=SPREAD,
    )


def _gpt2(sizes: Sizes) -> Any:
    """No gate, and fused projections under other names."""
    from transformers import GPT2Config

    return GPT2Config(
        **sizes.common,
        n_embd=sizes.hidden,
        n_inner=sizes.neurons,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_positions=sizes.context,
        initializer_range=SPREAD,
    )


ARCHITECTURES: dict[str, Callable[[Sizes], Any]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma": _gemma,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "opt": _opt,
    "gpt2": _gpt2,
    **DENSE_FAMILIES,
    **MOE_ARCHITECTURES,
    **MOE_FAMILIES,
}


def make_tiny_model(
    architecture: str,
    output: Path,
    *,
    seed: int = 0,
    layers: int = 3,
    neurons: int = NEURONS,
    expert_neurons: int = EXPERT_NEURONS,
    context: int = CONTEXT,
    tokenizer: Path | None = None,
    tell: folder.Tell = folder.silent,
) -> folder.MadeModel:
    """Put a random float32 model into `output`; the same arguments give the same bytes.

    `neurons` is the width of dense FFNs, `expert_neurons` that of a routed expert, where the architecture has any.
    `tokenizer` is a folder with a tokenizer.json, by default the demo model's (fetched where it is not on disk).
    """
    if architecture not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise UnknownModelError(f"A tiny model's architecture is one of {names}; {architecture!r} is none of them.")
    sizes = {"layers": layers, "neurons": neurons, "context": context}
    if architecture in {**MOE_ARCHITECTURES, **MOE_FAMILIES}:
        sizes["expert_neurons"] = expert_neurons
    if problems := [f"{name}: a model has at least 1, not {value}." for name, value in sizes.items() if value < 1]:
        raise InvalidInputError(problems)
    vocabulary = tokenizer or fetch_model(SMOLLM2_135M_INSTRUCT.name, tell=tell).path
    recipe = _recipe(architecture, seed, sizes, vocabulary)
    done = folder.finished(output, recipe)
    if done:
        return done
    tell(f"making a tiny {architecture}")
    with folder.new_folder(output) as partial:
        _save_tokenizer(vocabulary, partial)
        _save_random(architecture, partial, seed, sizes)
        source = folder.write_source(partial, recipe, {"licence": "random weights"})
    return folder.MadeModel(output, fresh=True, source=source)


def _recipe(architecture: str, seed: int, sizes: dict[str, int], tokenizer: Path) -> dict[str, Any]:
    vocabulary = tokenizer / "tokenizer.json"
    if not vocabulary.is_file():
        raise ModelUnavailableError(
            f"A tiny model needs a folder with a tokenizer.json, and {tokenizer} has none. Give --tokenizer another."
        )
    facts = {"architecture": architecture, "seed": seed, **sizes}
    return {"name": f"tiny-{architecture}", **facts, "tokenizer_sha256": folder.sha256_of(vocabulary)}


def _save_tokenizer(tokenizer: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, target / name)


def _save_random(architecture: str, target: Path, seed: int, sizes: dict[str, int]) -> None:
    """Write configuration and weights beside the tokenizer that is in `target` already."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config = ARCHITECTURES[architecture](Sizes(len(tokenizer), *ids, **sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, values in model.state_dict().items():
            if name.endswith(ZERO_ROUTERS) and not values.any():
                values.normal_(std=ROUTED_SPREAD)
    with no_bars():
        model.save_pretrained(target)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bar across ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
