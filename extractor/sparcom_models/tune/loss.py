"""The mean loss of a model on instructions, in float32 and exactly: of every counted token with the same weight.

The Trainer's own evaluation means over batches and then over instructions, so that a short one weighs as much as a
long one and the result depends on the batches; this one does not. Knows no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sparcom_models.tune.batches import pad
from sparcom_models.tune.chat import IGNORED
from sparcom_models.tune.data import Example


def mean_loss(model: Any, examples: Sequence[Example], batch_size: int) -> float:
    """Mean cross entropy in nats over the counted tokens of all examples; the model is left in its mode."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():  # what inference mode makes (a cache of positions, say) could not be trained through
            for batch in _batches(examples, batch_size):
                total += _summed_loss(model, pad([example.row for example in batch]))
                count += sum(example.predicted for example in batch)
    finally:
        model.train(training)
    return total / count


def _summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> float:
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    counted = labels != IGNORED
    return float(torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum"))


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """By length, so that little is padded."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
