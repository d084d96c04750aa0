"""Files beside a fine-tuned model: loss curve, continuations of fixed prompts, and the change of its weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from sparcom_data.errors import TrainingFailedError
from sparcom_models.base import load_model

COLUMNS = ("step", "epoch", "tokens", "training_loss", "held_out_loss", "learning_rate")
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
)


def write_curve(points: list[dict[str, Any]], folder: Path, title: str) -> None:
    """Write loss.csv, one row per point with empty cells for None, and loss.png, both losses against tokens."""
    from matplotlib.figure import Figure

    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in points:
            values = [point[name] for name in COLUMNS]
            writer.writerow([f"{value:.9g}" if isinstance(value, float) else value for value in values])
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    # Colors of Okabe and Ito, which the color-blind can tell apart.
    for name, style, label in (("training_loss", ".", "training, each step"), ("held_out_loss", "o--", "held out")):
        measured = [(point["tokens"], point[name]) for point in points if point[name] is not None]
        axes.plot(*zip(*measured, strict=True), style, color="#0072B2" if style == "." else "#D55E00", label=label)
    axes.set(title=title.replace("$", r"\$"), xlabel="tokens trained on", ylabel="cross entropy (nats per token)")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=160, metadata={"Software": None})  # the same bytes in any release


def continuations(model: Any, tokenizer: Any, new_tokens: int = 20) -> list[str]:
    """Return the greedy continuation of each of PROMPTS."""
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        length = inputs["input_ids"].shape[1]
        if length:  # else the tokenizer knows none of these letters
            made = model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        texts.append(tokenizer.decode(made[0, length:], skip_special_tokens=True) if length else "")
    return texts


def compare_weights(base: Path, tuned: Path) -> dict[str, Any]:
    """Compare two model folders of one architecture; raise `TrainingFailedError` where nothing differs.

    Returns the share of the numbers that differ, the distance (length of the difference over length of the base's
    weights), and the names of unchanged tensors.
    """
    before, after = (dict(load_model(path).named_parameters()) for path in (base, tuned))
    differing = {name: int((after[name] != tensor).sum()) for name, tensor in before.items()}
    if not any(differing.values()):
        raise TrainingFailedError(
            "A tuned model differs from its base, and not one weight does after rounding to "
            f"{next(iter(before.values())).dtype}: the steps were too small. Raise --learning-rate or --epochs."
        )
    squares = sum(float((after[name].double() - tensor.double()).square().sum()) for name, tensor in before.items())
    length = sum(float(tensor.double().square().sum()) for tensor in before.values())
    return {
        "share": sum(differing.values()) / sum(tensor.numel() for tensor in before.values()),
        "distance": (squares / length) ** 0.5,
        "unchanged": [name for name, count in differing.items() if not count],
    }
