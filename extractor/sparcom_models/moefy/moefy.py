"""Convert a dense LLaMA to an MoE model that still writes coherent text.

The result is a Qwen2-MoE checkpoint. Texts run through the model layer by layer. Each FFN is split (`ffn.py`) on the
outputs of the layers split before it, so that every layer is fitted to its real inputs. Attention, norms and embeddings
are copied. Qwen2's query, key and value biases are 0. The shared expert's gate is 0 too. Its sigmoid is then 1/2, so
the shared expert's down projection is doubled. The same base, sizes and seed give the same model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_hexainst.build.synthetic import synthetic_instructions
from sparcom_models import base as base_model
from sparcom_models import folder
from sparcom_models.fetch.fetch import MODELS_FOLDER
from sparcom_models.quiet import hide_progress_bars

if TYPE_CHECKING:
    from sparcom_models.moefy.ffn import SplitSizes

SHARED = 2 / 3  # of the neurons, rounded so that experts have whole bytes
_CHANGE = (
    "MoEfication: each FFN split into a shared expert (the neurons that contribute most) and routed experts (clusters "
    "of gate rows), routers fitted to the experts' outputs, down projections refitted; gates, ups, attention, norms "
    "and embeddings as in the base"
)
_COPIED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def make_moefied_model(
    output: Path | None = None,
    *,
    base: Path | None = None,
    experts: int = 8,
    top_k: int = 2,
    shared_neurons: int | None = None,
    seed: int = 0,
    texts: list[str] | None = None,
    on_progress: folder.ProgressCallback = folder.no_progress,
) -> folder.MadeModel:
    """Make an MoE version of a dense LLaMA in `output` (default models/NAME-moe).

    Args:
        base: the LLaMA's folder, by default the demo model's (fetched if it is not on disk).
        experts: routed experts per layer, `top_k` of them per token.
        shared_neurons: neurons of the shared expert, by default two thirds of the FFN.
        seed: seed of the clustering.
        texts: texts to fit the layers on, by default the demo's 20 synthetic instructions per category.

    Raises:
        InvalidInputError: an expert's number of neurons would not be a multiple of 8.
        UnsupportedModelError: the base is not a plain LLaMA.
    """
    dense = base_model.find_base(base, on_progress)
    config = base_model.load_config(dense)
    plain = (getattr(config, name, None) for name in ("model_type", "hidden_act", "attention_bias", "mlp_bias"))
    if tuple(plain) != ("llama", "silu", False, False):
        raise UnsupportedModelError(
            "an MoE model can only be made from a dense LLaMA with SiLU gates and no biases; "
            f"{dense} is {config.model_type!r}. Give another --model"
        )
    sizes = _checked_sizes(config.intermediate_size, experts, top_k, shared_neurons)
    texts = texts or [item.readable for item in synthetic_instructions(20)]
    recipe = {
        "name": f"{base_model.name_of(dense)}-moe",
        **sizes,
        "seed": seed,
        "base_sha256": base_model.weights_sha256(dense),
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }
    target = output or MODELS_FOLDER / str(recipe["name"])
    if finished := folder.find_finished(target, recipe):
        return finished
    from sparcom_models.moefy.ffn import SplitSizes

    with folder.new_folder(target) as partial:
        split_sizes = SplitSizes(experts, top_k, sizes["shared_neurons"], seed)
        errors = _save_moe(dense, partial, split_sizes, texts, on_progress)
        facts = {"change": _CHANGE, "mean_output_error": round(sum(errors) / len(errors), 4)}
        source = folder.write_source(partial, recipe, base_model.provenance_of(dense) | facts)
    return folder.MadeModel(target, fresh=True, source=source)


def _checked_sizes(neurons: int, experts: int, top_k: int, shared: int | None) -> dict[str, int]:
    """Return the checked sizes of the recipe; each expert has a multiple of 8 neurons."""
    step = 8 * max(experts, 1)
    if shared is None:
        shared = neurons - max(step, round(neurons * (1 - SHARED) / step) * step)
    problems = []
    if not 1 <= top_k <= experts:
        problems.append(f"top_k: must lie between 1 and the number of experts, {experts}; it is {top_k}")
    valid = [value for value in range(8, neurons - step + 1, 8) if (neurons - value) % step == 0]
    if shared not in valid:
        remedy = f"Choose one of {', '.join(map(str, valid[-4:]))}" if valid else "No number fits; use fewer experts"
        problems.append(
            f"shared_neurons: must be a multiple of 8 that leaves {experts} equal experts, each a multiple of 8, of "
            f"{neurons} neurons; it is {shared}. {remedy}"
        )
    if problems:
        raise InvalidInputError(problems)
    return {"experts": experts, "top_k": top_k, "shared_neurons": shared}


def _save_moe(
    dense: Path, target: Path, sizes: SplitSizes, texts: list[str], on_progress: folder.ProgressCallback
) -> list[float]:
    """Write the MoE model to `target`; return the relative error of each layer's output on the texts."""
    import torch
    from transformers import AutoTokenizer

    on_progress("loading the base model")
    base = base_model.load_model(dense, dtype=torch.float32, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(dense)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    moe = _empty_moe(base, sizes)
    with torch.inference_mode():
        errors = _split_layers(base, moe, [torch.tensor([row]) for row in ids if row], sizes, on_progress)
    on_progress("writing float32 weights")
    with hide_progress_bars():
        moe.save_pretrained(target)
    base_model.copy_files(dense, target, (*base_model.TOKENIZER_FILES, "generation_config.json"))
    return errors


def _empty_moe(base: Any, sizes: SplitSizes) -> Any:
    """Return a Qwen2-MoE of the base's sizes, with all weights but the FFNs copied."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig

    config = Qwen2MoeConfig(
        **{name: getattr(base.config, name) for name in _COPIED},
        num_experts=sizes.experts,
        num_experts_per_tok=sizes.top_k,
        moe_intermediate_size=(base.config.intermediate_size - sizes.shared) // sizes.experts,
        shared_expert_intermediate_size=sizes.shared,
        norm_topk_prob=True,
        use_sliding_window=False,
    )
    with torch.random.fork_rng(devices=[]):  # the random initial weights are all replaced
        moe = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    kept = {name: value for name, value in base.state_dict().items() if ".mlp." not in name}
    missing, unexpected = moe.load_state_dict(kept, strict=False)
    if unexpected or any(".mlp." not in name and not name.endswith("_proj.bias") for name in missing):
        raise UnsupportedModelError(
            f"a LLaMA must have the weights of a Qwen2 without biases; these differ: {unexpected or missing}"
        )
    for name, value in moe.named_parameters():
        if name in missing:
            value.data.zero_()
    return moe


def _split_layers(
    base: Any, moe: Any, ids: list[Any], sizes: SplitSizes, on_progress: folder.ProgressCallback
) -> list[float]:
    """Fill the MoE layers one by one, updating the hidden states (1, T, hidden) of each text."""
    import torch

    from sparcom_models.moefy.ffn import Ffn, split_ffn

    hidden = [base.model.embed_tokens(row) for row in ids]
    rotary = [base.model.rotary_emb(state, torch.arange(state.shape[1])[None]) for state in hidden]
    errors = []
    layers = list(zip(base.model.layers, moe.model.layers, strict=True))
    for number, (dense, sparse) in enumerate(layers):
        on_progress("splitting layers", number, len(layers))
        hidden = [
            state + dense.self_attn(dense.input_layernorm(state), position_embeddings=angles, attention_mask=None)[0]
            for state, angles in zip(hidden, rotary, strict=True)
        ]
        inputs = torch.cat([dense.post_attention_layernorm(state)[0] for state in hidden])
        ffn = Ffn(*(getattr(dense.mlp, name).weight for name in ("gate_proj", "up_proj", "down_proj")))
        made, block = split_ffn(ffn, inputs, sizes), sparse.mlp
        block.gate.weight.copy_(made.router)
        for index, expert in enumerate(made.experts):
            block.experts.gate_up_proj[index].copy_(torch.cat([expert.gate, expert.up]))
            block.experts.down_proj[index].copy_(expert.down)
        block.shared_expert.gate_proj.weight.copy_(made.shared.gate)
        block.shared_expert.up_proj.weight.copy_(made.shared.up)
        block.shared_expert.down_proj.weight.copy_(2 * made.shared.down)
        block.shared_expert_gate.weight.zero_()
        outputs = torch.split(made.output, [state.shape[1] for state in hidden])
        hidden = [state + output for state, output in zip(hidden, outputs, strict=True)]
        errors.append(made.error)
    return errors
