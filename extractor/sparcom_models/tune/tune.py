"""Fine-tune all weights of a model briefly on instructions, to compare the base with the tuned model.

1. Find and check the base; tokenize the instructions and split off the test instructions.
2. Measure the base's losses and continuations, train, and write the tuned model. Read it back and measure it the same
   way, so that rounding to the base's dtype is included.
3. Keep the tuned model only if its losses fell.
The same base, data, settings and seed give the same weights on one machine.
"""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from sparcom_data.errors import InvalidInputError, TrainingFailedError
from sparcom_data.instructions import read_jsonl
from sparcom_extractor.prompts import load_tokenizer
from sparcom_models import base as base_model
from sparcom_models import folder
from sparcom_models.fetch.fetch import MODELS_FOLDER
from sparcom_models.quiet import deterministic, hide_messages
from sparcom_models.tune.data import Parts, make_examples, split
from sparcom_models.tune.results import PROMPTS, compare_weights, continuations, write_curve
from sparcom_models.tune.settings import TuneSettings
from sparcom_models.tune.train import DEVICE, FIXED, mean_loss, supports_bfloat16, train


def tune_model(
    base: str | Path | None,
    data: Path,
    output: Path | None = None,
    *,
    settings: TuneSettings | None = None,
    on_progress: folder.ProgressCallback = folder.no_progress,
) -> folder.MadeModel:
    """Make a fine-tuned version of `base`, a folder or known name, in `output` (default models/NAME-tuned).

    Raises:
        InvalidInputError: settings or instructions (`data`, JSON lines) break a rule; names every problem.
        ModelUnavailableError: the base is missing or incomplete, or `output` holds something else.
        TrainingFailedError: the loss did not fall or is not finite, or memory did not suffice.
        UnsupportedModelError: the base is not a causal language model, or is quantized.
    """
    settings = settings or TuneSettings()
    settings = replace(settings, precision=settings.precision or ("bfloat16" if supports_bfloat16() else "float32"))
    with hide_messages():
        path = base_model.find_base(base, on_progress)
        config = base_model.load_config(path)
        base_model.require_trainable(path, config)
        instructions = read_jsonl(data)
        recipe = {
            "name": f"{base_model.name_of(path)}-tuned",
            "base_sha256": base_model.weights_sha256(path),
            "data_sha256": folder.sha256_of(data),
            **asdict(settings),
        }
        target = output or MODELS_FOLDER / str(recipe["name"])
        if finished := folder.find_finished(target, recipe):
            return finished
        on_progress("reading instructions")
        examples = make_examples(load_tokenizer(str(path)), instructions, settings)
        _require_fit(config, settings, max(max(example.ids, default=0) for example in examples))
        parts = split(examples, settings)
        with folder.new_folder(target) as partial, deterministic():
            facts = _tune(path, partial, parts, settings, on_progress)
            if make_examples(load_tokenizer(str(partial)), instructions, settings) != examples:
                raise TrainingFailedError(
                    f"The files copied from {path} tokenize differently; its tokenizer needs more files."
                )
            facts["instructions"]["cut"] = sum(len(example.ids) > settings.max_length for example in examples)
            facts["instructions"]["left_out"] = len(examples) - len(parts["training"]) - len(parts["held_out"])
            licences = Counter(item.license or "not stated" for item in instructions)
            facts["data_licences"] = dict(sorted(licences.items()))
            return folder.MadeModel(target, True, folder.write_source(partial, recipe, facts))


def _require_fit(config: Any, settings: TuneSettings, largest_id: int) -> None:
    context, problems = getattr(config, "max_position_embeddings", None), []
    if context is not None and settings.max_length > context:
        problems.append(
            f"max_length: must be at most the model's context, {context} tokens; it is {settings.max_length}"
        )
    if largest_id >= config.vocab_size:
        problems.append(
            f"token ids must be below the vocabulary size, {config.vocab_size}; the largest is {largest_id}"
        )
    if problems:
        raise InvalidInputError(problems)


def _tune(
    base: Path, target: Path, parts: Parts, settings: TuneSettings, on_progress: folder.ProgressCallback
) -> dict[str, Any]:
    """Write the tuned model and its results to `target`; return the facts for SOURCE.json."""
    tokenizer, measured = load_tokenizer(str(base)), ("training_sample", "held_out")

    def measure(model: Any, name: str) -> tuple[dict[str, float], list[str]]:
        on_progress(f"measuring the {name}")
        model.float().to(DEVICE).eval()
        return {part: mean_loss(model, parts[part]) for part in measured}, continuations(model, tokenizer)

    on_progress("loading the base model")
    model = base_model.load_model(base)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    router_loss = model.config.router_aux_loss_coef if getattr(model.config, "output_router_logits", False) else None
    before, texts_before = measure(model, "base")
    points = train(model, tokenizer, parts, settings, target, on_progress)
    on_progress("writing the tuned model")
    base_model.save_model(model, dtypes, target)
    base_model.copy_files(base, target, base_model.SMALL_FILES)
    del model  # make room for the two models loaded next
    gc.collect()  # accelerate's forward and the model refer to each other
    tuned = base_model.load_model(target)
    change = compare_weights(base_model.load_model(base), tuned)
    after, texts_after = measure(tuned, "tuned model")
    for part in measured:
        if not after[part] < before[part]:
            raise TrainingFailedError(
                f"The loss must fall; on {part} it went from {before[part]:.4f} to {after[part]:.4f}. No model was "
                f"made; lower --learning-rate ({settings.learning_rate:g}) or --epochs ({settings.epochs:g})."
            )
    start = dict.fromkeys(points[0]) | {"step": 0, "epoch": 0.0, "tokens": 0, "held_out_loss": before["held_out"]}
    points[-1]["held_out_loss"] = after["held_out"]
    write_curve([start, *points], target)
    texts = zip(PROMPTS, texts_before, texts_after, strict=True)
    folder.write_json(target / "continuations.json", [{"prompt": p, "base": b, "tuned": t} for p, b, t in texts])
    folder.write_json(target / "held-out.json", [example.id for example in parts["held_out"]])
    return {
        **base_model.provenance_of(base),
        "change": "all weights fine-tuned as a causal language model, with transformers' Trainer",
        "fixed": FIXED,
        "router_auxiliary_loss": router_loss,
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "instructions": {part: len(examples) for part, examples in parts.items()},
        "tokens": {part: sum(len(example.ids) for example in examples) for part, examples in parts.items()},
        "steps": points[-1]["step"],
        "tokens_trained_on": points[-1]["tokens"],
        "loss": {part: {"before": before[part], "after": after[part]} for part in measured},
        "weights_changed": change,
    }
