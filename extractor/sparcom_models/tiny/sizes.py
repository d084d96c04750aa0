"""The sizes of a tiny model, whatever its configuration calls them.

Every size is small but none is convenient: the FFN is 176 neurons wide unless told otherwise, a multiple of 8 but not
of 64, an expert 112, no multiple of 32 and on two ranks still whole bytes, and key-value heads are fewer than heads.
Heads of 32 are the smallest that vLLM's CPU attention knows. Weights are spread five to ten times wider than usual, so
that gates are not all near zero and routers choose by the input. Knows no architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SPREAD = 0.2  # the usual 0.02 gives gate pre-activations of about 0.2; this gives about 2
# Half as wide where there is a router: rounding grows from layer to layer, and with 0.2 two correct implementations of
# DeepSeek-V2 gave combine weights that were 7e-5 apart, with 0.1 they are 3e-6 apart.
ROUTED_SPREAD = 0.1
NEURONS = 176
EXPERT_NEURONS = 112
CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all tiny models share; ids are the tokenizer's, `neurons` of dense and shared FFNs."""

    vocabulary: int
    bos: int | None
    eos: int | None
    pad: int | None
    layers: int
    neurons: int
    context: int
    expert_neurons: int = EXPERT_NEURONS
    hidden: int = 128
    heads: int = 4
    key_value_heads: int = 2

    @property
    def common(self) -> dict[str, Any]:
        """Options that every configuration takes."""
        ids = {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return {"vocab_size": self.vocabulary, **ids}

    @property
    def gated(self) -> dict[str, Any]:
        """Options of the LLaMA family and its descendants."""
        return {
            **self.common,
            "hidden_size": self.hidden,
            "intermediate_size": self.neurons,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "max_position_embeddings": self.context,
            "initializer_range": SPREAD,
        }

    @property
    def routed(self) -> dict[str, Any]:
        """The same for mixtures of experts."""
        return {**self.gated, "initializer_range": ROUTED_SPREAD}
