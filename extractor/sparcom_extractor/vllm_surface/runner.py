"""Batch layout of one step in vLLM's V1 and V2 model runners.

    V1: after `execute_model`, `runner.input_batch` has the request order; the scheduler output has the token counts.
    V2: `runner.execute_model_state.input_batch` has both, until `sample_tokens` clears it.

The order of `num_scheduled_tokens` is not the row order. Identical in vLLM 0.24.0, 0.32.0 and 0.33.0, with and without
async scheduling. Counts of computed tokens are exact without speculative decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class SamplingParamsLike(Protocol):
    """vllm.sampling_params.SamplingParams."""

    extra_args: dict[str, Any] | None


class NewRequestLike(Protocol):
    """vllm.v1.core.sched.output.NewRequestData."""

    req_id: str
    sampling_params: SamplingParamsLike | None


class SchedulerOutputLike(Protocol):
    """vllm.v1.core.sched.output.SchedulerOutput."""

    scheduled_new_reqs: Sequence[NewRequestLike]
    finished_req_ids: set[str]
    preempted_req_ids: set[str] | None
    num_scheduled_tokens: Mapping[str, int]
    total_num_scheduled_tokens: int


class InputBatchV1Like(Protocol):
    """vllm.v1.worker.gpu_input_batch.InputBatch."""

    req_ids: Sequence[str]
    num_computed_tokens_cpu: NDArray[np.int32]  # (max requests,)


class InputBatchV2Like(Protocol):
    """vllm.v1.worker.gpu.input_batch.InputBatch; arrays and tensors may be padded."""

    req_ids: Sequence[str]
    query_start_loc_np: NDArray[np.int32]  # (requests + 1,)
    num_computed_tokens_np: NDArray[np.int32]  # (requests,)
    input_ids: torch.Tensor  # int32 (rows,)
    positions: torch.Tensor  # int64 (rows,)


class TokenBufferLike(Protocol):
    """vllm.v1.utils.CpuGpuBuffer."""

    gpu: torch.Tensor


class ExecuteModelStateLike(Protocol):
    """vllm.v1.worker.gpu.model_runner.ExecuteModelState."""

    input_batch: InputBatchV2Like


class ModelRunnerLike(Protocol):
    """vllm.v1.worker.gpu_model_runner.GPUModelRunner (V1), vllm.v1.worker.gpu.model_runner.GPUModelRunner (V2)."""

    input_batch: InputBatchV1Like  # V1
    input_ids: TokenBufferLike  # V1
    positions: torch.Tensor  # V1
    execute_model_state: ExecuteModelStateLike  # V2
    model_memory_usage: int  # bytes; GPU

    def get_model(self) -> torch.nn.Module: ...


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of one step, grouped by request.

    request_ids: in row order. start: int64 (requests + 1,), row boundaries.
    first_position: int64 (requests,), position of each request's first row within its sequence.
    ids, positions: int32 (rows,) and int64 (rows,), the model's inputs. Views: the next step overwrites them.
    """

    request_ids: Sequence[str]
    start: NDArray[np.int64]
    first_position: NDArray[np.int64]
    ids: torch.Tensor
    positions: torch.Tensor

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.positions) == self.count:
            raise RuntimeError(
                f"a step of {self.count} rows must have as many token ids and positions; there are {len(self.ids)} and "
                f"{len(self.positions)}. vLLM's batch layout is unknown to this release: report the vLLM version"
            )

    @property
    def count(self) -> int:
        """Rows of the step."""
        return int(self.start[-1])

    def expected_positions(self) -> NDArray[np.int64]:
        """Return the positions that the layout implies, int64 (rows,)."""
        return np.arange(self.count) + np.repeat(self.first_position - self.start[:-1], np.diff(self.start))


def batch_rows(runner: ModelRunnerLike, scheduled: SchedulerOutputLike, *, v2: bool) -> BatchRows:
    """Return the rows of the step that `runner`, V1 or V2, has just executed. Never reads from a device."""
    if v2:
        batch = runner.execute_model_state.input_batch
        request_ids, count = batch.req_ids, len(batch.req_ids)
        start = np.array(batch.query_start_loc_np[: count + 1], dtype=np.int64)
        computed, ids, positions = batch.num_computed_tokens_np, batch.input_ids, batch.positions
    else:
        request_ids, count = list(runner.input_batch.req_ids), len(runner.input_batch.req_ids)
        counts = [scheduled.num_scheduled_tokens[request] for request in request_ids]
        start = np.cumsum([0, *counts], dtype=np.int64)
        computed, ids, positions = runner.input_batch.num_computed_tokens_cpu, runner.input_ids.gpu, runner.positions
    rows = int(start[-1])
    return BatchRows(request_ids, start, np.array(computed[:count], dtype=np.int64), ids[:rows], positions[:rows])
