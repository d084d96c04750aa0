"""vLLM's CPU worker with capture. Tests call its methods by name to inject faults into its running model."""

from __future__ import annotations

from typing import Any

from sparcom_extractor.worker.cpu import CaptureCPUWorker


class FaultyWorker(CaptureCPUWorker):
    """A worker whose layer 1 runs its FFN twice in steps of at least `loop_from` rows."""

    loop_from = 1 << 30

    def load_model(self, *arguments: Any, **named: Any) -> None:
        super().load_model(*arguments, **named)
        ffn = self.model_runner.get_model().model.layers[1].mlp
        forward = ffn.forward
        ffn.forward = lambda x: forward(forward(x) if x.shape[0] >= self.loop_from else x)

    def faulty_loop(self, rows: int) -> None:
        """Make steps of at least this number of rows run the layer twice, from now on."""
        self.loop_from = rows

    def faulty_weight(self, value: float) -> float:
        """Set one weight of the norm before layer 1's FFN; return the previous value."""
        weight = self.model_runner.get_model().model.layers[1].post_attention_layernorm.weight
        before = float(weight[7])
        weight.data[7] = value
        return before
