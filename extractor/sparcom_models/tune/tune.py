"""Fine-tune all weights of a model briefly on instructions, so that a base and its tuned model can be compared.

1. Find and check the base; tokenize the instructions and hold out a share. 2. Measure losses and continuations of the
base, train, write the tuned model, read it back and measure it the same way, so that the rounding to the base's dtype
is included. 3. Keep it only if its losses fell. The same base, data, settings and seed give the same weights on one
machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import InvalidInputError, TrainingFailedError
from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_extractor.prompts import load_tokenizer
from sparcom_models import base as base_model
from sparcom_models import folder
from sparcom_models.fetch.fetch import MODELS_FOLDER
from sparcom_models.quiet import deterministic, hide_messages
from sparcom_models.tune.settings import TuneSettings

if TYPE_CHECKING:
    from sparcom_models.tune.data import Example


def tune_model(
    base: str | Path | None,
    data: Path,
    output: Path | None = None,
    *,
    settings: TuneSettings | None = None,
    on_progress: folder.ProgressCallback = folder.no_progress,
) -> folder.MadeModel:
    """Make a fine-tuned version of `base` in `output` (default models/NAME-tuned).

    Args:
        base: folder of a causal language model, or a known model's name; by default the demo model.
        data: instructions, JSON lines.
        output: folder to make.
        settings: epochs, learning rate and so on.
        on_progress: gets each step, and each training step with its loss.

    Raises:
        InvalidInputError: settings or instructions break a rule; every problem is named.
        ModelUnavailableError: the base is missing or incomplete, or `output` holds something else.
        TrainingFailedError: the loss did not fall, is not a number, or memory did not suffice.
        UnsupportedModelError: the base is no causal language model, or is quantized.
    """
    from sparcom_models.tune.data import make_examples
    from sparcom_models.tune.train import supports_bfloat16

    settings = settings or TuneSettings()
    settings = replace(settings, precision=settings.precision or ("bfloat16" if supports_bfloat16() else "float32"))
    with hide_messages():
        path = base_model.find_base(base, on_progress)
        config = base_model.load_config(path)
        base_model.require_trainable(path, config)
        recipe = {
            "name": f"{base_model.name_of(path)}-tuned",
            "base_sha256": base_model.weights_sha256(path),
            "data_sha256": folder.sha256_of(data),
            **asdict(settings),
        }
        target = output or MODELS_FOLDER / str(recipe["name"])
        instructions = read_jsonl(data)
        if finished := folder.find_finished(target, recipe):
            return finished
        on_progress("reading instructions")
        examples = make_examples(load_tokenizer(str(path)), instructions, settings)
        _require_fit(config, settings, examples)
        with folder.new_folder(target) as partial, deterministic():
            facts = _tune(path, partial, instructions, examples, settings, on_progress)
            facts["router_auxiliary_loss"] = (
                config.router_aux_loss_coef if getattr(config, "output_router_logits", False) else None
            )
            return folder.MadeModel(target, True, folder.write_source(partial, recipe, facts))


def _require_fit(config: Any, settings: TuneSettings, examples: list[Example]) -> None:
    context, largest = (
        getattr(config, "max_position_embeddings", None),
        max(max(item.ids, default=0) for item in examples),
    )
    if context is not None and settings.max_length > context:
        problem = f"max_length: at most the model's context of {context} tokens; it is {settings.max_length}. Lower it"
        raise InvalidInputError([problem])
    if largest >= config.vocab_size:
        problem = f"token ids lie below the model's vocabulary of {config.vocab_size}; the largest is {largest}"
        raise InvalidInputError([f"{problem}. Give instructions made for this model"])


def _tune(
    base: Path,
    partial: Path,
    instructions: Sequence[Instruction],
    examples: list[Example],
    settings: TuneSettings,
    on_progress: folder.ProgressCallback,
) -> dict[str, Any]:
    """Write the tuned model and its results into `partial`; return the facts for SOURCE.json."""
    import torch
    import transformers

    from sparcom_models.tune.data import make_examples, split
    from sparcom_models.tune.results import PROMPTS, compare_weights, continuations, write_curve
    from sparcom_models.tune.train import DEVICE, GRADIENT_NORM, WARMUP, mean_loss, train

    data, tokenizer = split(examples, settings), load_tokenizer(str(base))
    parts = {"training_sample": data.sample, "held_out": data.held_out}

    def measure(model: Any, which: str) -> tuple[dict[str, float], list[str]]:
        on_progress(f"measuring the {which}")
        model.to(DEVICE).eval()
        losses = {name: mean_loss(model, part, settings.batch_size) for name, part in parts.items()}
        return losses, continuations(model, tokenizer)

    on_progress("loading the base model")
    model = base_model.load_model(base)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    before, texts_before = measure(model.float(), "base")
    points = train(model, data, settings, on_progress)
    on_progress("writing the tuned model")
    base_model.save_model(model, dtypes, partial)
    base_model.copy_files(base, partial, base_model.SMALL_FILES)
    del model  # two of these are loaded below
    change = compare_weights(base, partial)
    after, texts_after = measure(base_model.load_model(partial).float(), "tuned model")
    for name in parts:
        if not after[name] < before[name]:
            raise TrainingFailedError(
                f"A tuned model has a lower loss than its base, and on {name} it went from {before[name]:.4f} to "
                f"{after[name]:.4f}. No model was made; lower --learning-rate ({settings.learning_rate:g}) or --epochs "
                f"({settings.epochs:g})."
            )
    if make_examples(load_tokenizer(str(partial)), instructions, settings) != examples:
        raise TrainingFailedError(f"The files copied from {base} tokenize differently: its tokenizer needs others.")
    first = {"step": 0, "epoch": 0.0, "tokens": 0, "training_loss": None, "learning_rate": None}
    points = [first | {"held_out_loss": before["held_out"]}, *points]
    points[-1]["held_out_loss"] = after["held_out"]
    name = base_model.name_of(base)
    write_curve(points, partial, f"{name} tuned on {len(data.training):,} instructions")
    texts = zip(PROMPTS, texts_before, texts_after, strict=True)
    for file, content in (
        ("continuations.json", [{"prompt": prompt, "base": old, "tuned": new} for prompt, old, new in texts]),
        ("held-out.json", [example.id for example in data.held_out]),
    ):
        (partial / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counted = {"training": data.training} | parts
    return {
        **base_model.provenance_of(base),
        "data_licences": dict(sorted(Counter(item.license or "not stated" for item in instructions).items())),
        "change": "all weights fine-tuned as a causal language model, with the Trainer of transformers",
        "fixed": {
            "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8, no weight decay",
            "schedule": f"cosine to 0 after a warm-up of {WARMUP:.0%} of the steps",
            "gradient_norm": GRADIENT_NORM,
        },
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "instructions": {
            **{name: len(part) for name, part in counted.items()},
            "cut": data.truncated,
            "left_out": data.left_out,
        },
        "tokens": {name: sum(len(example.ids) for example in part) for name, part in counted.items()},
        "steps": points[-1]["step"],
        "tokens_trained_on": points[-1]["tokens"],
        "loss": {name: {"before": before[name], "after": after[name]} for name in parts},
        "weights_changed": change,
    }
