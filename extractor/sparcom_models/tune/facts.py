"""What SOURCE.json tells of a tuned twin beside its recipe and its results: origin, licences, sizes. No wall time: two
runs of one recipe on one machine write the same file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparcom_models.tune.settings import FIXED

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_models.tune.base import Base
    from sparcom_models.tune.data import TuneData


def origin_of(base: Base, instructions: Sequence[Instruction]) -> dict[str, Any]:
    """Base, data and method; the licence of most models asks that changes are named."""
    import torch
    import transformers

    known = ("repository", "revision", "origin", "conversion", "base")
    return {
        "licence": base.source.get("licence", "that of the base model"),
        "data_licences": dict(sorted(Counter(item.license or "not stated" for item in instructions).items())),
        "base": {"name": base.name, **{key: base.source[key] for key in known if key in base.source}},
        "change": "all weights fine-tuned as a causal language model, with the Trainer of transformers",
        "fixed": FIXED,
        "router_auxiliary_loss": base.auxiliary_loss,
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def size_of(data: TuneData) -> dict[str, Any]:
    """Instructions and tokens of each part, after the cut; how many were cut, and how many left out."""
    parts = {"training": data.training, "training_sample": data.sample, "held_out": data.held_out}
    counts = {name: len(examples) for name, examples in parts.items()}
    tokens = {name: sum(len(example.ids) for example in examples) for name, examples in parts.items()}
    return {"instructions": {**counts, "cut": data.cut, "left_out": data.left_out}, "tokens": tokens}
