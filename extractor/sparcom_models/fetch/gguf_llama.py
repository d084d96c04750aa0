"""Reads a GGUF file of the LLaMA architecture back into Hugging Face names and float32.

The tensors come out bit for bit as transformers' own GGUF loader gives them (a test holds that), without building the
model twice. Knows no particular model and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufLlama:
    """An open GGUF file: `fields` are its metadata, `weights()` its tensors."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._reader = gguf.GGUFReader(path)
        self.fields: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        self._heads = {
            "attn_q": int(self.fields["llama.attention.head_count"]),
            "attn_k": int(self.fields["llama.attention.head_count_kv"]),
        }

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor by its Hugging Face name, float32, dequantised where it was quantised."""
        from gguf.quants import dequantize

        weights = {}
        for tensor in self._reader.tensors:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            name, kind = _translate(tensor.name)
            heads = self._heads.get(kind)
            weights[name] = np.ascontiguousarray(values if heads is None else _unpermute(values, heads))
        return weights


def _translate(name: str) -> tuple[str, str]:
    """The Hugging Face name of a tensor and its kind: blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{_OUTER[parts[0]]}.{parts[-1]}", parts[0]
    return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[-1]}", parts[2]


def _unpermute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo GGUF's interleaving of the rotary halves: (heads · half · 2, in) back to (heads · 2 · half, in)."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
