"""Train all weights of a model with the Trainer of transformers, and measure losses in float32."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sparcom_data.errors import TrainingFailedError
from sparcom_models.folder import ProgressCallback
from sparcom_models.tune.data import IGNORED, Example, TuneData
from sparcom_models.tune.settings import TuneSettings

WARMUP, GRADIENT_NORM = 0.1, 1.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_SORTED_BATCHES = 50  # sorted by length together; more would put the same instructions together in every epoch
_PARTS = 3  # the held-out loss is measured after each third of the steps; the last on the finished model


def supports_bfloat16() -> bool:
    """Return whether this machine multiplies bfloat16 in hardware (CUDA since 2020, AVX512-BF16, AMX).

    The demo model then trains on 315 tokens/s instead of 155 (two cores of an EPYC).
    """
    if DEVICE == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def make_batches(examples: Sequence[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """Split into batches of similar lengths, in an order fixed by seed and epoch.

    The Trainer's own grouping goes from long to short within each run of batches: short texts have the higher loss, so
    that the loss curve is a saw, and the last steps see short texts alone.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples)).tolist()
    run = size * _SORTED_BATCHES
    for first in range(0, len(order), run):
        order[first : first + run] = sorted(order[first : first + run], key=lambda number: len(examples[number].ids))
    batches = [[examples[number] for number in order[first : first + size]] for first in range(0, len(order), size)]
    return [batches[number] for number in rng.permutation(len(batches))]


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Pad on the right; return input_ids, attention_mask and labels, each int64 (batch, longest)."""
    ids = [torch.tensor(example.ids) for example in examples]
    labels = [torch.tensor(example.labels) for example in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def mean_loss(model: Any, examples: Sequence[Example], batch_size: int) -> float:
    """Return the mean cross entropy in nats over the counted tokens of all examples, whatever the batches."""
    training, total = model.training, 0.0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    model.eval()
    for first in range(0, len(ordered), batch_size):
        batch = {name: tensor.to(model.device) for name, tensor in collate(ordered[first : first + batch_size]).items()}
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():  # tensors cached in inference mode (positions) could not be trained through
            logits = model(**batch, use_cache=False).logits[:, :-1]
        counted = labels != IGNORED
        total += float(torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum"))
    model.train(training)
    return total / sum(example.predicted for example in examples)


def train(model: Any, data: TuneData, settings: TuneSettings, on_progress: ProgressCallback) -> list[dict[str, Any]]:
    """Train a float32 model in place and leave it on the CPU in evaluation mode.

    Returns:
        For each step: step, epoch, tokens trained on so far, training_loss before the step (with a router's auxiliary
        loss where the configuration asks for one), held_out_loss (None where not measured), both in nats per token,
        and learning_rate.

    Raises:
        TrainingFailedError: the loss or its gradient is no longer a number, or memory does not suffice.
    """
    size, rate = settings.batch_size, settings.learning_rate
    batches = [
        batch
        for epoch in range(math.ceil(settings.epochs))
        for batch in make_batches(data.training, size, settings.seed, epoch)
    ]
    per_epoch = math.ceil(len(data.training) / size)
    del batches[math.ceil(settings.epochs * per_epoch) :]
    recorder = Recorder(data.held_out, size, rate, on_progress)
    with tempfile.TemporaryDirectory(prefix="sparcom-trainer-") as output:
        arguments = TrainingArguments(
            output_dir=output,
            num_train_epochs=1,  # the dataset is the batches of all epochs, in their order
            train_sampling_strategy="sequential",
            per_device_train_batch_size=1,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP,
            max_grad_norm=GRADIENT_NORM,
            optim="adamw_torch_fused",  # 0.13 s per step of the demo model, the plain one 0.34 s
            weight_decay=0.0,
            seed=settings.seed,
            bf16=settings.precision == "bfloat16",
            use_cpu=DEVICE == "cpu",
            remove_unused_columns=False,
            include_num_input_tokens_seen="non_padding",
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would show the mean of the steps before in place of a NaN
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads batches over all devices of the machine
        trainer = Trainer(model, arguments, lambda rows: collate(rows[0]), train_dataset=batches, callbacks=[recorder])
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise TrainingFailedError(
                "Training holds four float32 copies of the weights and a batch's activations, and memory does not "
                f"suffice: {error}. Lower --batch-size or --max-length, or tune a smaller model."
            ) from error
    model.__dict__.pop("forward", None)  # accelerate's, which casts to bfloat16
    model.config.use_cache = True
    model.to("cpu").eval()
    return [point | {"epoch": point["step"] / per_epoch} for point in recorder.points]


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Records and reports each step, and ends a run whose loss is not a number."""

    def __init__(self, held_out: list[Example], batch_size: int, rate: float, on_progress: ProgressCallback) -> None:
        self.points: list[dict[str, Any]] = []
        self._held_out, self._batch_size, self._rate, self._on_progress = held_out, batch_size, rate, on_progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._on_progress("training", 0, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], model: Any, **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        step, steps, loss, gradient = state.global_step, state.max_steps, logs["loss"], logs.get("grad_norm", 0.0)
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            raise TrainingFailedError(
                f"Loss and gradient must be finite; at step {step} of {steps} the loss is {loss} and the length of the "
                f"gradient {gradient}. No model was made; lower --learning-rate ({self._rate:g})."
            )
        held_out = None
        if step in {steps * part // _PARTS for part in range(1, _PARTS)}:
            cast = model.__dict__.pop("forward", None)  # accelerate's, which casts to bfloat16
            held_out = mean_loss(model, self._held_out, self._batch_size)
            if cast:
                model.forward = cast
        tokens, rate = int(state.num_input_tokens_seen), logs["learning_rate"]
        self.points.append(
            {"step": step, "tokens": tokens, "training_loss": loss, "held_out_loss": held_out, "learning_rate": rate}
        )
        self._on_progress("training", step, steps, note=f"loss {loss:.3f}")
