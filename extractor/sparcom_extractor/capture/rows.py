"""Whose rows a step computed: the one place that knows how the two model runners of vLLM lay out a batch.

    V1: `runner.input_batch` holds the order of the requests after `execute_model`, the scheduler's output the counts.
    V2: `runner.execute_model_state.input_batch` holds all of it until `sample_tokens` clears it.

Never the order of `num_scheduled_tokens`: it is not the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of one step, request after request.

    request_ids: one a request, in row order. start: int64 (requests + 1,), row borders.
    first_position: int64 (requests,), position of each request's first row within its sequence.
    ids: int32 (rows,), positions: int64 (rows,): what the model was fed, on the host.
    """

    request_ids: list[str]
    start: NDArray[np.int64]
    first_position: NDArray[np.int64]
    ids: NDArray[np.int32]
    positions: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Rows of the step."""
        return int(self.start[-1])

    def check(self) -> None:
        """Hold that the positions fed to the model are those that the layout of the batch implies.

        Raises:
            RuntimeError: they are not; rows would go to the wrong places.
        """
        lengths = np.diff(self.start)
        expected = np.arange(self.count) + np.repeat(self.first_position - self.start[:-1], lengths)
        if self.positions.shape != expected.shape or self.ids.shape != expected.shape:
            raise RuntimeError(
                f"a step of {self.count} rows has as many token ids and positions; there are {self.ids.shape} and "
                f"{self.positions.shape}. The layout of vLLM's batch is not the one this release knows"
            )
        if not np.array_equal(expected, self.positions):
            row = int(np.flatnonzero(expected != self.positions)[0])
            raise RuntimeError(
                f"row {row} of a step must be position {int(expected[row])} of its request; the model was fed position "
                f"{int(self.positions[row])}. The layout of vLLM's batch is not the one this release knows"
            )


def batch_rows(runner: Any, scheduler_output: Any, *, v2: bool) -> BatchRows:
    """The rows of the step that `runner`, of version 1 or 2, has just executed."""
    if v2:
        return _rows_v2(runner.execute_model_state.input_batch)
    return _rows_v1(runner, scheduler_output)


def _rows_v1(runner: Any, scheduler_output: Any) -> BatchRows:
    batch = runner.input_batch
    request_ids = list(batch.req_ids)
    counts = np.array([scheduler_output.num_scheduled_tokens[request] for request in request_ids], dtype=np.int64)
    start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    return BatchRows(
        request_ids=request_ids,
        start=start,
        first_position=np.array(batch.num_computed_tokens_cpu[: len(request_ids)], dtype=np.int64),
        ids=_host(runner.input_ids.gpu[: start[-1]], np.int32),
        positions=_host(runner.positions[: start[-1]], np.int64),
    )


def _rows_v2(batch: Any) -> BatchRows:
    start = np.array(batch.query_start_loc_np[: len(batch.req_ids) + 1], dtype=np.int64)
    return BatchRows(
        request_ids=list(batch.req_ids),
        start=start,
        first_position=np.array(batch.num_computed_tokens_np[: len(batch.req_ids)], dtype=np.int64),
        ids=_host(batch.input_ids[: start[-1]], np.int32),
        positions=_host(batch.positions[: start[-1]], np.int64),
    )


def _host(tensor: torch.Tensor, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """A copy on the host: the runner overwrites its buffers in the next step."""
    return np.array(tensor.cpu().numpy(), dtype=dtype)
