"""Where vLLM and transformers are known to compute different models. A comparison still fails there; it says why.

Each entry was measured with a tiny random model: docs/support.md has the figures. It imports neither of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparcom_data.schema.metadata import ArchiveAttributes
from sparcom_data.verify import Check

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """One difference.

    architectures: names of model classes. vllm: the start of the versions that have it. device: "cpu" where only that
    has it. what: a sentence. applies: whether a configuration is affected.
    """

    architectures: tuple[str, ...]
    vllm: str
    device: str
    what: str
    applies: Callable[[Config], bool]

    def concerns(self, attributes: ArchiveAttributes, config: Config) -> bool:
        """Return whether an archive of these attributes has it."""
        model, engine = attributes.model, attributes.engine
        return (
            model.architecture in self.architectures
            and engine.vllm.startswith(self.vllm)
            and engine.device.startswith(self.device)
            and self.applies(config)
        )


KNOWN_DIFFERENCES = (
    KnownDifference(
        architectures=("Cohere2ForCausalLM",),
        vllm="0.32.",
        device="",
        what="its sliding window holds one token more than transformers'",
        applies=lambda config: "sliding_attention" in (config.get("layer_types") or ()),
    ),
    KnownDifference(
        architectures=("Ernie4_5_MoeForCausalLM",),
        vllm="0.32.",
        device="cpu",
        what="its routers rank without the selection bias",
        applies=lambda _: True,
    ),
    KnownDifference(
        architectures=("OlmoeForCausalLM",),
        vllm="0.32.",
        device="",
        what="it does not normalize the weights of the top-k experts, though norm_topk_prob is true",
        applies=lambda config: bool(config.get("norm_topk_prob")),
    ),
    KnownDifference(
        architectures=("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
        vllm="0.32.",
        device="cpu",
        what="its kernel for rotary embeddings takes the heads of a query for tokens, so attention is wrong",
        applies=lambda config: "full_attention" in (config.get("layer_types") or ()),
    ),
)


def note_known_differences(checks: Sequence[Check], attributes: ArchiveAttributes, config: Config) -> None:
    """Add a note to the first check that failed, for each known difference that concerns the archive.

    Args:
        checks: of a comparison with transformers.
        attributes: of the archive.
        config: the configuration of the reference's text model.
    """
    failed = next((check for check in checks if not check.passed), None)
    if failed is None:
        return
    failed.notes.extend(
        f"known difference of vLLM {attributes.engine.vllm} from transformers: {difference.what}. The archive holds "
        "what vLLM computed; see docs/support.md"
        for difference in KNOWN_DIFFERENCES
        if difference.concerns(attributes, config)
    )
