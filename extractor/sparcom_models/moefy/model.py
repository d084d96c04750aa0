"""Cuts a loaded dense model of the LLaMA architecture, layer by layer, into a Qwen2-MoE.

1. Texts run through the model layer by layer. 2. At each layer the FFN is cut by what it does on their tokens
(`moefy_layer`), as they come out of the layers cut before it, so that a later layer is fitted to what it will see.
3. Attention, norms and embeddings are taken over; the query, key and value biases that Qwen2 has are 0, and so is the
shared expert's gate, whose sigmoid is then 1/2 of a shared output that is twice as long.
Knows no recipe and writes the model's own files only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_models import folder
from sparcom_models.moefy.layer import Cut, Ffn, Mixture, cut_ffn
from sparcom_models.tiny.tiny import no_bars

if TYPE_CHECKING:
    from pathlib import Path

_BATCH = 16


def save_mixture(dense: Path, target: Path, cut: Cut, texts: list[str], tell: folder.Tell) -> list[float]:
    """Write weights and configuration of the mixture into `target`.

    Returns:
        How much of each layer's output is lost on the texts: length of the error over length of the output.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tell("loading the base model")
    base = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(dense)
    batches = _Batches.of([tokenizer(text)["input_ids"] for text in texts])
    mixture = _empty_mixture(base, cut)
    with torch.inference_mode():
        errors = _cut_layers(base, mixture, batches, cut, tell)
    tell("writing float32 weights")
    with no_bars():
        mixture.save_pretrained(target)
    return errors


def _empty_mixture(base: Any, cut: Cut) -> Any:
    """A Qwen2-MoE of the base's sizes with everything but its FFNs taken over."""
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig

    dense = base.config
    width = (dense.intermediate_size - cut.shared) // cut.experts
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
        *("tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
    config = Qwen2MoeConfig(
        **{name: getattr(dense, name) for name in same},
        num_experts=cut.experts,
        num_experts_per_tok=cut.chosen,
        moe_intermediate_size=width,
        shared_expert_intermediate_size=cut.shared,
        norm_topk_prob=True,
        use_sliding_window=False,
    )
    with torch.random.fork_rng(devices=[]):  # first weights are random, and all are replaced
        mixture = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    kept = {name: value for name, value in base.state_dict().items() if ".mlp." not in name}
    missing, unexpected = mixture.load_state_dict(kept, strict=False)
    if unexpected or any(".mlp." not in name and not name.endswith("_proj.bias") for name in missing):
        raise UnsupportedModelError(
            f"a LLaMA's weights are those of a Qwen2 without biases; these are not: {unexpected}"
        )
    for name, value in mixture.named_parameters():
        if name in missing:
            value.data.zero_()
    return mixture


@dataclass(slots=True)
class _Batches:
    """Token ids by length, padded on the right; hidden states (rows, tokens, hidden) of each as they go along."""

    ids: list[torch.Tensor]
    real: list[torch.Tensor]

    @classmethod
    def of(cls, sequences: list[list[int]]) -> _Batches:
        ordered = sorted(filter(None, sequences), key=len)
        ids, real = [], []
        for start in range(0, len(ordered), _BATCH):
            rows = [torch.tensor(row) for row in ordered[start : start + _BATCH]]
            ids.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
            real.append(torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True) > 0)
        return cls(ids, real)


def _cut_layers(base: Any, mixture: Any, batches: _Batches, cut: Cut, tell: folder.Tell) -> list[float]:
    """Cut layer after layer; padding comes after a row's tokens, so causal attention keeps it out of them."""
    hidden = [base.model.embed_tokens(ids) for ids in batches.ids]
    places = [base.model.rotary_emb(state, torch.arange(state.shape[1])[None]) for state in hidden]
    errors = []
    layers = list(zip(base.model.layers, mixture.model.layers, strict=True))
    for number, (dense, mixed) in enumerate(layers):
        tell("cutting layers", number, len(layers))
        for index, place in enumerate(places):
            normed = dense.input_layernorm(hidden[index])
            hidden[index] = hidden[index] + dense.self_attn(normed, position_embeddings=place, attention_mask=None)[0]
        inputs = [dense.post_attention_layernorm(state) for state in hidden]
        seen = torch.cat([state[real] for state, real in zip(inputs, batches.real, strict=True)])
        ffn = Ffn(*(getattr(dense.mlp, name).weight for name in ("gate_proj", "up_proj", "down_proj")))
        made = cut_ffn(ffn, seen, cut)
        _fill(mixed.mlp, made)
        outputs = torch.split(made.output, [int(real.sum()) for real in batches.real])
        for state, real, output in zip(hidden, batches.real, outputs, strict=True):
            state[real] += output
        errors.append(made.error)
    return errors


def _fill(block: Any, made: Mixture) -> None:
    """Put a mixture into transformers' block."""
    block.gate.weight.copy_(made.router)
    for number, expert in enumerate(made.experts):
        block.experts.gate_up_proj[number].copy_(torch.cat([expert.gate, expert.up]))
        block.experts.down_proj[number].copy_(expert.down)
    block.shared_expert.gate_proj.weight.copy_(made.shared.gate)
    block.shared_expert.up_proj.weight.copy_(made.shared.up)
    block.shared_expert.down_proj.weight.copy_(2 * made.shared.down)
    block.shared_expert_gate.weight.zero_()
