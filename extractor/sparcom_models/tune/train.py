"""Train all weights of a model with transformers' Trainer, and measure losses in float32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from sparcom_data.errors import TrainingFailedError
from sparcom_models.folder import ProgressCallback
from sparcom_models.tune.data import Example, Parts
from sparcom_models.tune.settings import TuneSettings

FIXED = {
    "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8, no weight decay",
    "schedule": "cosine to 0 after a warm-up of 10% of the steps",
    "gradient_norm": 1.0,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def supports_bfloat16() -> bool:
    """Return whether this machine multiplies bfloat16 in hardware (CUDA since 2020, AVX512-BF16, AMX).

    The demo model then trains at 315 tokens/s instead of 155 (two cores of an EPYC).
    """
    if DEVICE == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def make_batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Return the indices of each batch of one epoch. Batches hold similar lengths and are in random order.

    Fully random batches pad 120 instructions to 21,800 tokens instead of 10,400. The Trainer's own grouping goes from
    long to short texts several times per epoch, and short texts have the higher loss.
    """
    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(lengths, size, mega_batch_mult=50, generator=generator)
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def mean_loss(model: Any, examples: Sequence[Example]) -> float:
    """Return the mean cross entropy in nats per predicted token of all examples, in float32 and without dropout.

    Unlike the Trainer's evaluation, it weights all tokens equally and leaves out a router's auxiliary loss.
    """
    training, total = model.training, 0.0
    model.eval()
    with torch.no_grad():  # not inference_mode: tensors cached in it (positions) would block training
        for example in examples:
            ids, labels = torch.tensor([example.ids, example.labels], device=model.device)
            # The class's forward: during training, accelerate's forward on the instance casts to bfloat16.
            logits = type(model).forward(model, ids[None], use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
    model.train(training)
    return total / sum(example.predicted for example in examples)


def train(
    model: Any, tokenizer: Any, parts: Parts, settings: TuneSettings, scratch: Path, on_progress: ProgressCallback
) -> list[dict[str, Any]]:
    """Train a float32 model in place; the Trainer leaves nothing in `scratch`.

    Returns:
        One point per step: step, epoch, tokens trained on so far, training_loss before the step (with a router's
        auxiliary loss if configured), held_out_loss (None if not measured), learning_rate. Losses: nats per token.

    Raises:
        TrainingFailedError: the loss or its gradient is not finite, or memory does not suffice.
    """
    lengths = [len(example.ids) for example in parts["training"]]
    epochs = [make_batches(lengths, settings.batch_size, settings.seed + n) for n in range(math.ceil(settings.epochs))]
    per_epoch = len(epochs[0])
    batches = list(itertools.chain.from_iterable(epochs))[: math.ceil(settings.epochs * per_epoch)]
    rows = [{"input_ids": example.ids, "labels": example.labels} for example in parts["training"]]
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0  # padding is masked, so any token works
    pad = DataCollatorForSeq2Seq(tokenizer)
    recorder = Recorder(per_epoch, lambda: mean_loss(model, parts["held_out"]), on_progress)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=1,  # the dataset has the batches of all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # of all steps
        optim="adamw_torch_fused",  # 0.13 s per step of the demo model, the plain one 0.34 s
        seed=settings.seed,
        bf16=settings.precision == "bfloat16",
        use_cpu=DEVICE == "cpu",
        include_num_input_tokens_seen="non_padding",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of earlier steps
        save_strategy="no",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads batches over all devices
    dataset = [[rows[number] for number in batch] for batch in batches]
    trainer = Trainer(model, arguments, lambda items: pad(items[0]), train_dataset=dataset, callbacks=[recorder])
    trainer.remove_callback(PrinterCallback)
    on_progress("training", 0, len(batches))
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise TrainingFailedError(
            f"Training needs memory for four float32 copies of the weights and a batch's activations: {error}. "
            "Lower --batch-size or --max-length, or tune a smaller model."
        ) from error
    return recorder.points


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Records and reports each step; ends the run if the loss is not finite."""

    def __init__(self, per_epoch: int, held_out_loss: Callable[[], float], on_progress: ProgressCallback) -> None:
        self.points: list[dict[str, Any]] = []
        self._per_epoch, self._held_out_loss, self._on_progress = per_epoch, held_out_loss, on_progress

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        step, steps, loss = state.global_step, state.max_steps, logs["loss"]
        if not (math.isfinite(loss) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise TrainingFailedError(
                f"Loss and gradient must be finite; at step {step} of {steps} the loss is {loss} and the gradient norm "
                f"{logs.get('grad_norm')}. No model was made; lower --learning-rate."
            )
        # Measured after a third and two thirds of the steps; at the end, tune.py measures the finished model.
        held_out = self._held_out_loss() if step in {steps // 3, steps * 2 // 3} else None
        point = {"step": step, "epoch": step / self._per_epoch, "tokens": int(state.num_input_tokens_seen)}
        point |= {"training_loss": loss, "held_out_loss": held_out, "learning_rate": logs["learning_rate"]}
        self.points.append(point)
        self._on_progress("training", step, steps, note=f"loss {loss:.3f}")
