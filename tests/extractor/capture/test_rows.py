"""Rows are mapped to requests in the runner's order, for both of vLLM's model runners and with its real classes."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_extractor.capture.rows import check_positions
from sparcom_extractor.vllm_surface.config import refuse_engine
from sparcom_extractor.vllm_surface.runner import BatchRows, batch_rows

CPU = torch.device("cpu")
PADDING = 3


@pytest.fixture(scope="module")
def vllm() -> Any:
    """Import vLLM's own classes once. Takes seconds and raises warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm import SamplingParams
        from vllm.v1.core.sched.output import SchedulerOutput
        from vllm.v1.worker.gpu import input_batch as v2
        from vllm.v1.worker.gpu.model_runner import ExecuteModelState
        from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    return SimpleNamespace(
        SamplingParams=SamplingParams,
        SchedulerOutput=SchedulerOutput,
        CachedRequestState=CachedRequestState,
        InputBatchV1=InputBatch,
        InputBatchV2=v2.InputBatch,
        InputBuffersV2=v2.InputBuffers,
        ExecuteModelState=ExecuteModelState,
    )


def scheduled(vllm: Any, counts: dict[str, int]) -> Any:
    output = vllm.SchedulerOutput.make_empty()
    output.num_scheduled_tokens = counts
    output.total_num_scheduled_tokens = sum(counts.values())
    return output


def state(vllm: Any, request: str, computed: int) -> Any:
    return vllm.CachedRequestState(
        req_id=request,
        prompt_token_ids=list(range(20)),
        mm_features=[],
        sampling_params=vllm.SamplingParams(temperature=0.0),
        generator=None,
        block_ids=([0],),
        num_computed_tokens=computed,
        output_token_ids=[],
    )


def runner_v1(vllm: Any, computed: dict[str, int], *, gone: str) -> Any:
    """Return a V1 runner with a batch that vLLM reordered after a request ended."""
    known = inspect.signature(vllm.InputBatchV1).parameters  # parameters differ between vLLM 0.24 and 0.33
    sometimes = {"pin_memory": False, "kernel_block_sizes": [16], "max_num_blocks_per_req": [2]}
    batch = vllm.InputBatchV1(
        max_num_reqs=8,
        max_model_len=32,
        max_num_batched_tokens=32,
        device=CPU,
        vocab_size=100,
        block_sizes=[16],
        **{name: value for name, value in sometimes.items() if name in known},
    )
    for request, first in computed.items():
        batch.add_request(state(vllm, request, first))
    batch.remove_request(gone)
    batch.condense()
    return SimpleNamespace(input_batch=batch)


def feed(runner: Any, counts: dict[str, int], computed: dict[str, int]) -> tuple[list[int], list[int]]:
    """Put token ids and positions into the runner's buffers, in row order with padding at the end; return them."""
    positions = [computed[request] + row for request in runner.input_batch.req_ids for row in range(counts[request])]
    ids = [ord(request) * 100 + row for request in runner.input_batch.req_ids for row in range(counts[request])]
    runner.input_ids = SimpleNamespace(gpu=torch.tensor(ids + [-7] * PADDING, dtype=torch.int32))
    runner.positions = torch.tensor(positions + [99] * PADDING)
    return ids, positions


def test_v1_rows_are_in_the_order_of_the_batch(vllm: Any) -> None:
    """V1 row order is that of the input batch, not that of the scheduler's counts."""
    computed = {"a": 0, "b": 0, "c": 7}
    counts = {"b": 4, "c": 2}
    runner = runner_v1(vllm, computed, gone="a")
    assert runner.input_batch.req_ids == ["c", "b"], "the batch must be in another order than the counts"
    ids, positions = feed(runner, counts, computed)
    rows = batch_rows(runner, scheduled(vllm, counts), v2=False)
    assert rows.request_ids == ["c", "b"]
    assert rows.start.tolist() == [0, 2, 6]
    assert rows.first_position.tolist() == [7, 0]
    assert (rows.ids.tolist(), rows.positions.tolist()) == (ids, positions)
    check(rows)


def test_v1_layout_is_a_copy(vllm: Any) -> None:
    """The runner's next step updates its counts in place; the layout of this step stays unchanged."""
    computed = {"a": 0, "b": 3}
    runner = runner_v1(vllm, computed, gone="a")
    feed(runner, {"b": 2}, computed)
    rows = batch_rows(runner, scheduled(vllm, {"b": 2}), v2=False)
    runner.input_batch.num_computed_tokens_cpu[:] = 50
    runner.input_batch.req_ids[0] = "z"
    assert (rows.request_ids, rows.first_position.tolist()) == (["b"], [3])


def test_ids_and_positions_are_views(vllm: Any) -> None:
    """Reading the layout copies nothing from a device: ids and positions are views of the runner's buffers."""
    computed = {"a": 0, "b": 3}
    runner = runner_v1(vllm, computed, gone="a")
    feed(runner, {"b": 2}, computed)
    rows = batch_rows(runner, scheduled(vllm, {"b": 2}), v2=False)
    assert rows.ids.data_ptr() == runner.input_ids.gpu.data_ptr()
    assert rows.positions.data_ptr() == runner.positions.data_ptr()


def test_v2_rows_follow_the_batch_of_the_step(vllm: Any) -> None:
    """V2 order, boundaries and first positions come from the step's batch, without its padding."""
    batch = vllm.InputBatchV2.make_dummy(3, 6, vllm.InputBuffersV2(8, 16, CPU))
    batch.req_ids = ["c", "a", "b"]
    batch.query_start_loc_np = np.array([0, 2, 3, 6, 6, 6], dtype=np.int32)  # padded to more requests
    batch.num_computed_tokens_np = np.array([7, 11, 0], dtype=np.int32)
    batch.input_ids = torch.tensor([30, 31, 10, 20, 21, 22, -7, -7], dtype=torch.int32)
    batch.positions = torch.tensor([7, 8, 11, 0, 1, 2, 99, 99])
    runner = SimpleNamespace(execute_model_state=SimpleNamespace(input_batch=batch))
    rows = batch_rows(runner, scheduled(vllm, {"a": 1, "b": 3, "c": 2}), v2=True)
    assert rows.request_ids == ["c", "a", "b"]
    assert rows.start.tolist() == [0, 2, 3, 6]
    assert rows.first_position.tolist() == [7, 11, 0]
    assert rows.ids.tolist() == [30, 31, 10, 20, 21, 22]
    assert rows.positions.tolist() == [7, 8, 11, 0, 1, 2]
    check(rows)


def test_the_installed_vllm_names_the_v2_batch_as_expected(vllm: Any) -> None:
    """The installed vLLM keeps a step's batch under the names that capture reads."""
    assert "input_batch" in vllm.ExecuteModelState._fields


def check(rows: BatchRows) -> None:
    check_positions(rows.expected_positions(), rows.positions.numpy())


def rows_of(**changed: Any) -> BatchRows:
    values = {
        "request_ids": ["a", "b"],
        "start": np.array([0, 2, 5]),
        "first_position": np.array([4, 0]),
        "ids": torch.arange(5, dtype=torch.int32),
        "positions": torch.tensor([4, 5, 0, 1, 2]),
    }
    return BatchRows(**(values | changed))


def test_expected_positions_pass() -> None:
    """Consecutive positions within each request match the layout."""
    check(rows_of())
    assert rows_of().count == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positions": torch.tensor([4, 5, 0, 2, 1])}, r"row 3 of a step must be position 1 .* was fed position 2"),
        ({"first_position": np.array([0, 4])}, r"row 0 of a step must be position 0 .* was fed position 4"),
        ({"start": np.array([0, 3, 5])}, r"row 2 of a step must be position 6 .* was fed position 0"),
        ({"positions": torch.tensor([4, 5, 0, 1])}, r"as many token ids and positions"),
        ({"ids": torch.arange(4, dtype=torch.int32)}, r"as many token ids and positions"),
    ],
)
def test_unexpected_positions_are_found(changed: dict[str, Any], message: str) -> None:
    """A batch read in the wrong order, or split at the wrong rows, raises an error that names the row."""
    with pytest.raises(RuntimeError, match=message):
        check(rows_of(**changed))


def engine_config(**changed: Any) -> Any:
    """Return the fields of vLLM's configuration that capture reads."""
    values = {"replicas": 1, "experts": False, "use_ubatching": False, "speculative": None, "fast_prefill": False}
    values |= {"context": 1} | changed
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            data_parallel_size=values["replicas"],
            enable_expert_parallel=values["experts"],
            use_ubatching=values["use_ubatching"],
            prefill_context_parallel_size=values["context"],
        ),
        speculative_config=values["speculative"],
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=values["fast_prefill"]),
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"replicas": 2}, "one engine per replica"),
        ({"experts": True}, "Use tensor parallelism only"),
        ({"context": 2}, "prefill context parallelism"),
        ({"use_ubatching": True}, "micro-batches"),
        ({"speculative": object()}, "speculative decoding"),
        ({"fast_prefill": True}, "kv_sharing_fast_prefill"),
    ],
)
def test_an_engine_with_unassignable_rows_is_refused(changed: dict[str, Any], reason: str) -> None:
    """Tokens on other ranks, several forward passes per step, and rejected or skipped tokens are refused with a
    remedy."""
    assert refuse_engine(engine_config()) is None
    assert reason in str(refuse_engine(engine_config(**changed)))
