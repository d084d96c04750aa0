"""Known differences between vLLM and transformers. The comparison still fails; a note gives the reason.

Each entry was measured with a tiny random model; docs/support-matrix.md has the figures.
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
    """A difference in vLLM 0.32. device: "cpu" if only CPUs have it. affects: whether a configuration has it."""

    architectures: tuple[str, ...]
    text: str
    affects: Callable[[Config], bool] = lambda _: True
    device: str = ""

    def concerns(self, attributes: ArchiveAttributes, config: Config) -> bool:
        """Return whether the difference affects an archive."""
        engine, known = attributes.engine, attributes.model.architecture in self.architectures
        version = engine.vllm.startswith("0.32.") and engine.device.startswith(self.device)
        return known and version and self.affects(config)


def _has_layers(kind: str) -> Callable[[Config], bool]:
    return lambda config: kind in (config.get("layer_types") or ())


KNOWN_DIFFERENCES = (
    KnownDifference(
        ("Cohere2ForCausalLM",),
        "its sliding window holds one token more than that of transformers",
        _has_layers("sliding_attention"),
    ),
    KnownDifference(("Ernie4_5_MoeForCausalLM",), "its routers rank without the selection bias", device="cpu"),
    KnownDifference(
        ("OlmoeForCausalLM",),
        "it does not normalize the weights of the top-k experts, though norm_topk_prob is true",
        lambda config: bool(config.get("norm_topk_prob")),
    ),
    KnownDifference(
        ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
        "its rotary embedding kernel mistakes query heads for tokens, so attention is wrong",
        _has_layers("full_attention"),
        device="cpu",
    ),
)


def note_known_differences(checks: Sequence[Check], attributes: ArchiveAttributes, config: Config) -> None:
    """Add known differences to the first failed check of a comparison; `config` is that of the text model."""
    failed = next((check for check in checks if not check.passed), Check("none"))
    failed.notes.extend(
        f"known difference of vLLM {attributes.engine.vllm} from transformers: {difference.text}. The archive holds "
        "what vLLM computed; see docs/support-matrix.md"
        for difference in KNOWN_DIFFERENCES
        if difference.concerns(attributes, config)
    )
