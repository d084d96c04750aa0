"""Trains all weights of a loaded model with transformers' Trainer, and notes every step's loss.

What is ours is around it: repeatable order and arithmetic, a loss that stops being a number ends the run, the held-out
loss on the way, and nothing of the Trainer's own reaches terminal or working folder. Knows no files of a model.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sparcom_data.errors import ModelUnavailableError
from sparcom_models.tune import settings as tune_settings
from sparcom_models.tune.batches import Batches, pad
from sparcom_models.tune.loss import mean_loss

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sparcom_models.tune.data import TuneData
    from sparcom_models.tune.settings import Precision, TuneSettings

LOOKS = 3  # the held-out loss is taken at each third of the steps; the last is taken on the finished model


class TellTraining(Protocol):
    """A `Tell` that also takes a word on how it goes."""

    def __call__(self, step: str, done: int = 0, total: int = 0, note: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Point:
    """What is known after a step.

    tokens: trained on so far. training_loss: of the step's batch before the step, as the model gives it, with a
    router's auxiliary loss where its configuration asks for one. Losses: nats a token, None where none was taken.
    """

    step: int
    epoch: float
    tokens: int
    training_loss: float | None
    held_out_loss: float | None
    learning_rate: float | None


def device() -> str:
    """Where the model is trained and measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware: CUDA devices of 2020 on, and processors with AVX512-BF16
    or AMX. There the demo model trains on 315 tokens a second in place of 155 (two cores of an EPYC)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities: dict[str, Any] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def train(
    model: Any, data: TuneData, settings: TuneSettings, precision: Precision, scratch: Path, tell: TellTraining
) -> list[Point]:
    """Train `model` (float32) in place; afterwards it is on the CPU, in evaluation mode and unwrapped.

    Returns:
        A point for each step, the first for step 1.

    Raises:
        ModelUnavailableError: the loss or its gradient is no longer a number, or memory does not suffice.
    """
    watch = _Watch(data, settings, tell)
    with tempfile.TemporaryDirectory(prefix="trainer-", dir=scratch) as place:
        trainer = _GroupingTrainer(
            model=model,
            args=_arguments(settings, precision, place),
            data_collator=pad,
            train_dataset=[example.row for example in data.training],
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise ModelUnavailableError(
                f"Training holds four float32 copies of the weights and a batch's activations, and memory does not "
                f"suffice: {error}. Lower --batch-size or --max-length, or tune a smaller model."
            ) from error
    model.__dict__.pop("forward", None)  # accelerate's, which casts to bfloat16
    model.config.use_cache = True
    model.to("cpu").eval()
    return watch.points


def _arguments(settings: TuneSettings, precision: Precision, place: str) -> Any:
    arguments = TrainingArguments(
        output_dir=place,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=tune_settings.WARM_UP,
        max_grad_norm=tune_settings.GRADIENT_NORM,
        optim="adamw_torch_fused",  # 0.13 s a step of the demo model, the plain one 0.34 s
        weight_decay=0.0,
        seed=settings.seed,
        bf16=precision == "bfloat16",
        use_cpu=device() == "cpu",
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show the mean of the steps before in place of a NaN
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer spreads batches over all devices of the machine
    return arguments


class _GroupingTrainer(Trainer):  # type: ignore[misc]
    """With batches of like lengths in any order. The Trainer's own grouping goes from the longest to the shortest four
    times a round: short texts have the higher loss, so that the curve was a saw, and the last steps saw them alone."""

    def get_train_dataloader(self) -> Any:
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        batches = Batches(lengths, self.args.train_batch_size, self.args.seed)
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Notes each step, tells of it, looks at the held-out part, and ends a run whose loss is no number."""

    def __init__(self, data: TuneData, settings: TuneSettings, tell: TellTraining) -> None:
        self.points: list[Point] = []
        self._data, self._settings, self._tell = data, settings, tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell("training", 0, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], model: Any, **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        step, loss = state.global_step, logs["loss"]
        if not (math.isfinite(loss) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise ModelUnavailableError(
                f"Training goes on while loss and gradient are numbers; at step {step} of {state.max_steps} the loss "
                f"is {loss} and the gradient {logs.get('grad_norm')}. No model was made; lower --learning-rate "
                f"({self._settings.learning_rate:g})."
            )
        held_out = self._held_out_loss(model) if step in _looks(state.max_steps) else None
        tokens = int(state.num_input_tokens_seen)
        self.points.append(Point(step, float(state.epoch), tokens, loss, held_out, logs["learning_rate"]))
        self._tell("training", step, state.max_steps, note=f"loss {loss:.3f}")

    def _held_out_loss(self, model: Any) -> float:
        with _uncast(model):
            return mean_loss(model, self._data.held_out, self._settings.batch_size)


def _looks(steps: int) -> set[int]:
    return {steps * look // LOOKS for look in range(1, LOOKS)} - {0, steps}


@contextlib.contextmanager
def _uncast(model: Any) -> Iterator[None]:
    """Without accelerate's forward, which casts to bfloat16, so that losses of one curve are of one precision."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
