"""The finished twin: written in the base's dtypes, held against its base weight by weight, and what it says.

Knows no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError
from sparcom_models.tiny.tiny import no_bars
from sparcom_models.tune.base import copy_small_files, load_model

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
)
NEW_TOKENS = 20  # the demo model makes 14 a second on two cores


@dataclass(frozen=True, slots=True)
class Change:
    """How a twin's weights differ from its base's. share: of the numbers, that differ at all. distance: length of the
    difference over length of the base's weights. unchanged: names of the tensors that are the base's."""

    share: float
    distance: float
    unchanged: list[str]


def save_twin(model: Any, dtypes: dict[str, torch.dtype], base: Path, target: Path) -> None:
    """Write weights in the base's dtypes beside the base's own small files."""
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
    with no_bars():
        model.save_pretrained(target)
    copy_small_files(base, target)


def change_of(base: Path, twin: Path) -> Change:
    """Compare every weight of two folders of one architecture.

    Raises:
        ModelUnavailableError: none differs.
    """
    before, after = (dict(load_model(path).named_parameters()) for path in (base, twin))
    differing = {name: int((after[name] != tensor).sum()) for name, tensor in before.items()}
    if not any(differing.values()):
        raise ModelUnavailableError(
            "A tuned model differs from its base, and not one weight does after rounding to "
            f"{next(iter(before.values())).dtype}: the steps were too small. Raise --learning-rate or --epochs."
        )
    moved = sum(float((after[name].double() - tensor.double()).square().sum()) for name, tensor in before.items())
    length = sum(float(tensor.double().square().sum()) for tensor in before.values())
    return Change(
        share=sum(differing.values()) / sum(tensor.numel() for tensor in before.values()),
        distance=(moved / length) ** 0.5,
        unchanged=[name for name, count in differing.items() if not count],
    )


def continuations(model: Any, tokenizer: Any) -> list[str]:
    """What the model says after each of PROMPTS: the likeliest token, NEW_TOKENS times or until it ends."""
    import torch

    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device).long()
        if not ids.numel():  # a tokenizer that knows none of these letters
            texts.append("")
            continue
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        )
        texts.append(str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts
