"""Makes the twin, step by step: measure the base, train, write, read back, measure again, compare, tell.

Loss and text after training are those of the files: of the model as it loads from its folder, so that what rounding to
the base's dtype takes away is seen. Knows neither how the base was found nor how the folder is published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError
from sparcom_extractor.prompts import load_tokenizer
from sparcom_models.tune import base as tune_base
from sparcom_models.tune import curve as tune_curve
from sparcom_models.tune import twin as tune_twin
from sparcom_models.tune.data import make_examples
from sparcom_models.tune.facts import origin_of, size_of
from sparcom_models.tune.loss import mean_loss
from sparcom_models.tune.train import Point, device, train

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_models.tune.base import Base
    from sparcom_models.tune.data import Example, TuneData
    from sparcom_models.tune.settings import Precision, TuneSettings
    from sparcom_models.tune.train import TellTraining

CURVE, PICTURE, CONTINUATIONS, HELD_OUT = "loss.csv", "loss.png", "continuations.json", "held-out.json"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that one run of fine-tuning needs to know. examples: all instructions as tokens, before the cut."""

    base: Base
    instructions: Sequence[Instruction]
    tokenizer: Any
    examples: Sequence[Example]
    data: TuneData
    settings: TuneSettings
    precision: Precision
    tell: TellTraining


@dataclass(frozen=True, slots=True)
class _Measured:
    """Mean losses (nats a token) on the sample of the training part and on the held-out part, and what it says."""

    training_sample: float
    held_out: float
    texts: list[str]


def make(job: Job, partial: Path) -> dict[str, Any]:
    """Write the twin and all that goes with it into `partial`; what SOURCE.json tells beside the recipe.

    Raises:
        ModelUnavailableError: the loss did not fall, or is no number, or no weight changed.
    """
    job.tell("loading the base model")
    model = tune_base.load_model(job.base.path)
    dtypes = tune_base.dtypes_of(model)
    before = _measured(job, model.float(), "measuring the base")
    points = train(model, job.data, job.settings, job.precision, partial, job.tell)
    job.tell("writing the twin")
    tune_twin.save_twin(model, dtypes, job.base.path, partial)
    del model  # two of these are loaded below
    change = tune_twin.change_of(job.base.path, partial)
    after = _measured(job, tune_base.load_model(partial).float(), "measuring the twin")
    _require_fall(job, before, after)
    _require_same_tokens(job, partial)
    _write_results(job, partial, _with_ends(points, before, after), before, after)
    return {
        **origin_of(job.base, job.instructions),
        **size_of(job.data),
        "steps": points[-1].step,
        "tokens_trained_on": points[-1].tokens,
        "loss": {
            part: {"before": getattr(before, part), "after": getattr(after, part)}
            for part in ("training_sample", "held_out")
        },
        "weights_changed": asdict(change),
    }


def _measured(job: Job, model: Any, step: str) -> _Measured:
    job.tell(step)
    model.to(device()).eval()
    size = job.settings.batch_size
    return _Measured(
        mean_loss(model, job.data.sample, size),
        mean_loss(model, job.data.held_out, size),
        tune_twin.continuations(model, job.tokenizer),
    )


def _require_fall(job: Job, before: _Measured, after: _Measured) -> None:
    """What did not learn is no tuned twin, and neither is what knows its instructions by heart and no others."""
    for part, name in (("training_sample", "training"), ("held_out", "held-out")):
        first, last = getattr(before, part), getattr(after, part)
        if not last < first:
            raise ModelUnavailableError(
                f"A tuned model has a lower loss than its base, and on the {name} instructions it went from "
                f"{first:.4f} to {last:.4f}. No model was made; lower --learning-rate ({job.settings.learning_rate:g}) "
                f"or --epochs ({job.settings.epochs:g})."
            )


def _require_same_tokens(job: Job, partial: Path) -> None:
    if make_examples(load_tokenizer(str(partial)), job.instructions, job.settings) != list(job.examples):
        raise ModelUnavailableError(
            "A twin tokenises as its base does, and with the files copied from "
            f"{job.base.path} it does not: its tokenizer needs others. Tell us which model it is."
        )


def _with_ends(points: list[Point], before: _Measured, after: _Measured) -> list[Point]:
    """The points with one for step 0 before them, and the twin's held-out loss at the last."""
    start = Point(0, 0.0, 0, None, before.held_out, None)
    return [start, *points[:-1], replace(points[-1], held_out_loss=after.held_out)]


def _write_results(job: Job, partial: Path, points: list[Point], before: _Measured, after: _Measured) -> None:
    tune_curve.write_csv(points, partial / CURVE)
    title = f"{job.base.name} tuned on {len(job.data.training):,} instructions"
    tune_curve.draw(points, partial / PICTURE, title)
    texts = zip(tune_twin.PROMPTS, before.texts, after.texts, strict=True)
    said = [{"prompt": prompt, "base": base, "tuned": tuned} for prompt, base, tuned in texts]
    _write_json(partial / CONTINUATIONS, said)
    _write_json(partial / HELD_OUT, [example.id for example in job.data.held_out])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
