"""Extra files of a fine-tuned model (loss curve, continuations of fixed prompts), and the change of its weights."""

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
    """Write loss.csv (one row per point, empty cells for None) and loss.png (both losses against tokens)."""
    from matplotlib.figure import Figure

    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, points[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel="tokens trained on", ylabel="cross entropy (nats per token)")
    for name, style in (("training_loss", "."), ("held_out_loss", "o--")):
        measured = [(point["tokens"], point[name]) for point in points if point[name] is not None]
        axes.plot(*zip(*measured, strict=True), style, label=name.replace("_", " "))
    axes.legend()
    figure.savefig(folder / "loss.png", metadata={"Software": None})  # the same bytes in any release


def continuations(model: Any, tokenizer: Any) -> list[str]:
    """Return the greedy continuation, 20 tokens, of each of PROMPTS."""
    from transformers import pipeline

    generate = pipeline("text-generation", model, tokenizer=tokenizer, device=model.device)
    options = {"max_new_tokens": 20, "do_sample": False, "num_beams": 1, "return_full_text": False}
    return [  # "" if the vocabulary lacks the prompt's letters
        generate(prompt, **options)[0]["generated_text"] if tokenizer(prompt)["input_ids"] else "" for prompt in PROMPTS
    ]


def compare_weights(base: Any, tuned: Any) -> dict[str, float]:
    """Return the fraction of weights that differ, and the L2 norm of the difference relative to that of the base.

    Raises:
        TrainingFailedError: no weight differs.
    """
    differing, total, change, length = 0, 0, 0.0, 0.0
    for before, after in zip(base.parameters(), tuned.parameters(), strict=True):
        differing += int((before != after).sum())
        total += before.numel()
        change += float((after.double() - before.double()).square().sum())
        length += float(before.double().square().sum())
    if not differing:
        raise TrainingFailedError(
            "A tuned model must differ from its base; after rounding to "
            f"{base.dtype} no weight does. Raise --learning-rate or --epochs."
        )
    return {"share": differing / total, "distance": (change / length) ** 0.5}
