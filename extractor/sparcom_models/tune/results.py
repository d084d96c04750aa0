"""Files beside a fine-tuned model: loss curve, continuations of fixed prompts, and the change of its weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from sparcom_data.errors import TrainingFailedError

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
)


def write_curve(points: list[dict[str, Any]], folder: Path) -> None:
    """Write loss.csv, one row per point with empty cells for None, and loss.png, both losses against tokens."""
    from matplotlib.figure import Figure

    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, points[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    axes = Figure(layout="constrained").add_subplot(xlabel="tokens trained on", ylabel="cross entropy (nats per token)")
    for name, style in (("training_loss", "."), ("held_out_loss", "o--")):
        measured = [(point["tokens"], point[name]) for point in points if point[name] is not None]
        axes.plot(*zip(*measured, strict=True), style, label=name.replace("_", " "))
    axes.legend()
    axes.figure.savefig(folder / "loss.png", metadata={"Software": None})  # the same bytes in any release


def continuations(model: Any, tokenizer: Any) -> list[str]:
    """Return the greedy continuation of each of PROMPTS by 20 tokens."""
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        length = inputs["input_ids"].shape[1]
        made = [[]]
        if length:  # else the tokenizer knows none of these letters
            options = {"do_sample": False, "num_beams": 1, "pad_token_id": tokenizer.pad_token_id or 0}
            made = model.generate(**inputs, max_new_tokens=20, **options)
        texts.append(tokenizer.decode(made[0][length:], skip_special_tokens=True))
    return texts


def compare_weights(base: Any, tuned: Any) -> dict[str, Any]:
    """Return the share of weights that differ, the relative length of the difference, and unchanged tensors' names.

    Raises:
        TrainingFailedError: no weight differs.
    """
    weights = {name: (before, tuned.get_parameter(name)) for name, before in base.named_parameters()}
    differing = {name: int((before != after).sum()) for name, (before, after) in weights.items()}
    if not any(differing.values()):
        raise TrainingFailedError(
            "A tuned model differs from its base, and not one weight does after rounding to "
            f"{base.dtype}: the steps were too small. Raise --learning-rate or --epochs."
        )
    squares = sum(float((after.double() - before.double()).square().sum()) for before, after in weights.values())
    length = sum(float(before.double().square().sum()) for before, _ in weights.values())
    return {
        "share": sum(differing.values()) / sum(before.numel() for before, _ in weights.values()),
        "distance": (squares / length) ** 0.5,
        "unchanged": [name for name, count in differing.items() if not count],
    }
