"""Fine-tunes a model on instructions: all weights, briefly, so that a real base and its tuned twin can be compared.

1. The base is found and checked (`tune_base`), the instructions become tokens, a share is held out (`tune_data`).
2. Losses and a few continuations are taken of the base, transformers' Trainer trains, the twin is written, read back
and measured in the same way (`tune_make`). 3. A twin whose loss did not fall is not kept. The same base, data, settings
and seed give the same weights on one machine. Knows nothing of the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import read_jsonl
from sparcom_extractor.prompts import load_tokenizer
from sparcom_models import folder
from sparcom_models.fetch.fetch import MODELS_FOLDER
from sparcom_models.fetch.smollm2 import SMOLLM2_135M_INSTRUCT
from sparcom_models.tune import base as tune_base
from sparcom_models.tune.settings import TuneSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparcom_data.instructions import Instruction
    from sparcom_models.tune.base import Base
    from sparcom_models.tune.make import Job
    from sparcom_models.tune.settings import Precision
    from sparcom_models.tune.train import TellTraining


def silent(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """The `TellTraining` that tells nobody."""


def tune_model(
    base: str | Path | None,
    data: Path,
    output: Path | None = None,
    *,
    settings: TuneSettings | None = None,
    tell: TellTraining = silent,
) -> folder.MadeModel:
    """Put a fine-tuned twin of `base` into `output` (default models/NAME-tuned).

    Args:
        base: folder of a causal language model, or a known model's name; by default the demo model.
        data: instructions, JSON lines.
        output: folder to make.
        settings: epochs, rate, lengths, seed and so on.

    Raises:
        InvalidInputError: settings or instructions break a rule; every problem is named.
        ModelUnavailableError: the base cannot be had, something is in the way, or training came to nothing.
        UnsupportedModelError: the base is no causal language model, or is quantised.
    """
    from sparcom_models.tune.make import make
    from sparcom_models.tune.quiet import quiet, repeatable
    from sparcom_models.tune.train import has_bfloat16

    settings = settings or TuneSettings()
    with quiet():
        found = tune_base.find_base(base or SMOLLM2_135M_INSTRUCT.name, tell)
        precision = settings.precision or ("bfloat16" if has_bfloat16() else "float32")
        instructions = read_jsonl(data)
        recipe = {
            "name": f"{found.name}-tuned",
            "base_sha256": tune_base.weights_sha256(found.path),
            "data_sha256": folder.sha256_of(data),
            **settings.recipe(precision),
        }
        target = output or MODELS_FOLDER / str(recipe["name"])
        done = folder.finished(target, recipe)
        if done:
            return done
        job = _prepared(found, instructions, settings, precision, tell)
        with folder.new_folder(target) as partial, repeatable():
            facts = make(job, partial)
            return folder.MadeModel(target, fresh=True, source=folder.write_source(partial, recipe, facts))


def _prepared(
    base: Base, instructions: Sequence[Instruction], settings: TuneSettings, precision: Precision, tell: TellTraining
) -> Job:
    """Everything that can be wrong with instructions and base together is found here, before anything is computed."""
    from sparcom_models.tune.data import make_examples, split
    from sparcom_models.tune.make import Job

    if base.context is not None and settings.max_length > base.context:
        raise InvalidInputError(
            [
                f"max_length: at most the model's context of {base.context} tokens; it is {settings.max_length}. "
                "Lower --max-length"
            ]
        )
    tell("reading instructions")
    tokenizer = load_tokenizer(str(base.path))
    examples = make_examples(tokenizer, instructions, settings)
    largest = max(max(example.ids, default=0) for example in examples)
    if largest >= base.config.vocab_size:
        raise InvalidInputError(
            [
                f"token ids lie below the model's vocabulary of {base.config.vocab_size}; the largest is {largest}. "
                "Give instructions made for this model"
            ]
        )
    return Job(base, instructions, tokenizer, examples, split(examples, settings), settings, precision, tell)
