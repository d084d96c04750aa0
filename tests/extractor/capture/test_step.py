"""The rows of a step go to the sessions of the requests with a plan, clipped to the plan, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.queue import HostTransferQueue
from sparcom_extractor.protocol import PLAN_KEY, Plan
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.session import StepRows

LAYERS, NEURONS = 2, 11


class Session:
    """Records the rows and calls of a session."""

    stores_counts = False

    def close(self) -> None:
        """Do nothing."""

    def __init__(self) -> None:
        self.steps: list[StepRows] = []
        self.reasons: list[str] = []

    def append_rows(self, step: StepRows) -> None:
        self.steps.append(step)

    def fail(self, reason: str) -> None:
        self.reasons.append(reason)

    def received(self) -> list[tuple[int, int, int, int, list[int], list[int]]]:
        """Return (index, row, capacity, offset, token ids, first mask byte of each row) of every range."""
        return [
            (
                item.index,
                item.row,
                item.capacity,
                item.offset,
                step.ids[item.source : item.source + item.rows].tolist(),
                step.arrays["neuron/active"][item.source : item.source + item.rows, 0, 0].tolist(),
            )
            for step in self.steps
            for item in step.ranges.view(np.recarray)
        ]


class Worker:
    """Drives a StepCapture as the worker does; the masks of row r encode r."""

    def __init__(self, *sessions: str) -> None:
        buffers = StepBuffers(64, Widths(range(LAYERS), NEURONS), torch.device("cpu"))
        assert buffers.dense is not None
        self.buffer = buffers.dense
        self.capture = StepCapture(buffers, HostTransferQueue())
        self.sessions = {name: Session() for name in sessions}
        for name, session in self.sessions.items():
            self.capture.open(name, session)  # type: ignore[arg-type]

    def step(
        self,
        batch: Sequence[tuple[str, int, int]],
        *,
        new: dict[str, Any] | None = None,
        finished: Sequence[str] = (),
        layers: int = LAYERS,
        shift: int = 0,
        twice: int | None = None,
        short: bool = False,
        wrong: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Run consecutive (request, first position, rows). new: plans, or None, of new requests. twice: a layer that
        runs twice. short: the last layer gets one row less. wrong: (row, layer) with a NaN gate."""
        requests = [
            SimpleNamespace(
                req_id=name,
                sampling_params=SimpleNamespace(extra_args=None if plan is None else {PLAN_KEY: plan}),
            )
            for name, plan in (new or {}).items()
        ]
        self.capture.before_step(scheduled(requests, finished))
        count = sum(rows for _, _, rows in batch)
        bits = np.unpackbits(np.arange(count, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        gate = np.pad(bits, ((0, 0), (0, NEURONS - 8))).astype(np.float32)
        for layer in [*range(layers), *([] if twice is None else [twice])]:
            own = np.concatenate([gate, gate], axis=1)[: count - (short and layer == LAYERS - 1)]
            own[[row for row, at in wrong if at == layer], 3] = np.nan
            self.buffer.store(layer, torch.from_numpy(own), SILU)
        positions = [first + row for _, first, rows in batch for row in range(rows)]
        self.capture.after_step(
            BatchRows(
                request_ids=[name for name, _, _ in batch],
                start=np.concatenate([[0], np.cumsum([rows for _, _, rows in batch])]).astype(np.int64),
                first_position=np.array([first + shift for _, first, _ in batch], dtype=np.int64),
                ids=torch.arange(100, 100 + count, dtype=torch.int32),
                positions=torch.tensor(positions, dtype=torch.int64),
            )
        )


def scheduled(new: Sequence[Any], finished: Sequence[str] = ()) -> Any:
    return SimpleNamespace(preempted_req_ids=None, finished_req_ids=set(finished), scheduled_new_reqs=new)


def plan(index: int, row: int, end: int, *, begin: int = 0, session: str = "s", **more: int) -> dict[str, Any]:
    return {"session": session, "index": index, "row": row, "begin": begin, "end": end, **more}


def test_rows_go_where_the_plan_says() -> None:
    """With two requests in one step, each range holds its own rows, in one call."""
    worker = Worker("s")
    worker.step([("b", 0, 3), ("a", 0, 2)], new={"a": plan(0, 10, 2), "b": plan(1, 20, 3)})
    assert worker.sessions["s"].received() == [
        (1, 20, 3, 0, [100, 101, 102], [0, 1, 2]),
        (0, 10, 2, 0, [103, 104], [3, 4]),
    ]
    assert len(worker.sessions["s"].steps) == 1


def test_chunks_of_a_prompt_follow_each_other() -> None:
    """With chunked prefill, every chunk of a prompt has the offset of its first position."""
    worker = Worker("s")
    worker.step([("a", 0, 4)], new={"a": plan(0, 10, 7)})
    worker.step([("a", 4, 3)])
    assert [item[3:5] for item in worker.sessions["s"].received()] == [(0, [100, 101, 102, 103]), (4, [100, 101, 102])]


def test_rows_outside_the_plan_are_left_out() -> None:
    """A plan of response rows begins after the prompt, and a step may run past the end."""
    worker = Worker("s")
    worker.step([("a", 0, 4)], new={"a": plan(0, 10, 7, begin=5)})  # none of these rows is planned
    worker.step([("a", 4, 2)])  # one row before the plan, one within
    worker.step([("a", 6, 1)])
    worker.step([("a", 7, 1)])  # past the end
    assert worker.sessions["s"].received() == [(0, 10, 2, 0, [101], [1]), (0, 10, 2, 1, [100], [0])]


def test_a_preempted_request_computes_its_rows_again() -> None:
    """After a preemption positions restart at 0, and the same rows are sent again with the same offsets."""
    worker = Worker("s")
    worker.step([("a", 0, 4)], new={"a": plan(0, 10, 6)})
    worker.step([("a", 4, 1)])
    worker.step([("a", 0, 6)])
    assert [item[3] for item in worker.sessions["s"].received()] == [0, 4, 0]
    assert worker.sessions["s"].received()[2][4] == [100, 101, 102, 103, 104, 105]


def test_a_request_reported_as_new_again_keeps_its_plan() -> None:
    """Model runner V2 reports a preempted request as new, in the step that ends its predecessor."""
    worker = Worker("s")
    worker.step([("a", 0, 2)], new={"a": plan(0, 10, 4)})
    worker.step([("a", 0, 4)], new={"a": plan(0, 10, 4)}, finished=["a"])
    assert len(worker.sessions["s"].received()) == 2


def test_requests_without_a_plan_are_ignored() -> None:
    """Other requests in the same step change nothing, before or after ours."""
    worker = Worker("s")
    worker.step([("x", 0, 3), ("a", 0, 2), ("y", 5, 4)], new={"x": None, "a": plan(0, 10, 2), "y": None})
    assert worker.sessions["s"].received() == [(0, 10, 2, 0, [103, 104], [3, 4])]
    assert len(worker.sessions["s"].steps[0].arrays["neuron/active"]) == 2, "rows of others are not copied"


def test_extra_args_of_others_are_no_plan() -> None:
    """A request whose extra_args hold other keys is not captured."""
    worker = Worker("s")
    request = SimpleNamespace(req_id="a", sampling_params=SimpleNamespace(extra_args={"other": 1}))
    pooling = SimpleNamespace(req_id="b", sampling_params=None)
    worker.capture.before_step(scheduled([request, pooling]))
    assert not worker.capture.active


def test_plans_are_removed_when_requests_end() -> None:
    """A finished request leaves nothing behind; a request without a plan may finish too."""
    worker = Worker("s")
    worker.step([("a", 0, 2), ("b", 0, 2)], new={"a": plan(0, 10, 2), "b": plan(1, 20, 2)})
    assert worker.capture.active
    worker.step([("b", 2, 1)], finished=["a", "never-seen"])
    assert worker.capture.active
    worker.step([], finished=["b"])
    assert not worker.capture.active


def test_closed_and_unknown_sessions_get_nothing() -> None:
    """Rows of a closed session's requests are dropped; other rows are not."""
    worker = Worker("s")
    worker.step([("a", 0, 2), ("b", 0, 2)], new={"a": plan(0, 10, 2, session="gone"), "b": plan(1, 20, 2)})
    assert [item[0] for item in worker.sessions["s"].received()] == [1]


def test_sessions_of_one_step_get_their_own_rows() -> None:
    """Requests of two extractions share a step, and each session gets its own rows."""
    worker = Worker("s", "t")
    worker.step([("a", 0, 2), ("b", 0, 2)], new={"a": plan(0, 10, 2), "b": plan(0, 10, 2, session="t")})
    assert worker.sessions["s"].received() == [(0, 10, 2, 0, [100, 101], [0, 1])]
    assert worker.sessions["t"].received() == [(0, 10, 2, 0, [102, 103], [2, 3])]


def test_delivered_rows_do_not_change() -> None:
    """The next step overwrites the buffer, but a session keeps the rows that it received."""
    worker = Worker("s")
    worker.step([("a", 0, 3)], new={"a": plan(0, 10, 9)})
    before = worker.sessions["s"].received()
    worker.buffer.masks.fill_(255)
    assert worker.sessions["s"].received() == before


def test_a_step_that_bypassed_a_layer_fails_only_its_sessions() -> None:
    """Invalid rows end the sessions that they belong to; the engine runs on and other sessions stay open."""
    worker = Worker("s", "t")
    worker.step([("a", 0, 2)], new={"a": plan(0, 10, 2)}, layers=1)
    assert ["layer 1 wrote 0 times, 0 rows" in reason for reason in worker.sessions["s"].reasons] == [True]
    assert worker.sessions["s"].steps == []
    assert worker.sessions["t"].reasons == []


@pytest.mark.parametrize(
    ("fault", "found"),
    [({"twice": 0}, "layer 0 wrote 2 times, 4 rows"), ({"short": True}, "layer 1 wrote 1 times, 1 rows")],
    ids=str,
)
def test_a_layer_that_did_not_write_once_ends_the_session(fault: dict[str, Any], found: str) -> None:
    """A layer that ran twice, so that the last pass would win, or got fewer rows ends the session, even after good
    steps."""
    worker = Worker("s")
    worker.step([("a", 0, 2)], new={"a": plan(0, 10, 9)})
    worker.step([("a", 2, 2)], **fault)
    assert [found in reason for reason in worker.sessions["s"].reasons] == [True]
    assert len(worker.sessions["s"].steps) == 1


def test_steps_without_captured_requests_are_not_checked() -> None:
    """Warm-up runs, graph captures and steps without a captured request may write any number of times."""
    worker = Worker("s")
    worker.step([("x", 0, 3)], twice=1, new={"x": None})
    worker.step([("x", 3, 1)], layers=1)
    worker.step([("a", 0, 2)], new={"a": plan(0, 10, 2)}, finished=["x"])
    assert worker.sessions["s"].reasons == []
    assert len(worker.sessions["s"].received()) == 1


def test_nonfinite_gates_are_faults_of_their_instruction_only() -> None:
    """The fault names the first row and layer with a NaN, by position in the prompt or the response. Others have no
    fault."""
    worker = Worker("s", "t")
    new = {
        "a": plan(0, 10, 9, prompt=6),
        "b": plan(1, 20, 9, prompt=6),
        "c": plan(2, 30, 9, begin=4, prompt=4),
        "d": plan(0, 10, 9, session="t"),
    }
    worker.step([("b", 0, 2), ("a", 3, 2), ("c", 4, 3), ("d", 7, 1)], new=new, wrong=[(3, 1), (6, 0), (6, 1), (7, 1)])
    (step,) = worker.sessions["s"].steps
    assert {index: fault.offset for index, fault in step.faults.items()} == {0: 4, 2: 2}
    assert "layer 1 has gates that are NaN or infinite at position 4 of the prompt. Check" in step.faults[0].reason
    assert (
        "layer 0 has gates that are NaN or infinite at position 2 of the response, and in 1 more"
        in step.faults[2].reason
    )
    assert "at position 7. Check" in worker.sessions["t"].steps[0].faults[0].reason
    worker.step([("a", 5, 1), ("b", 2, 1)])
    assert worker.sessions["s"].steps[1].faults == {}, "flags are of one step"


def test_flags_of_rows_past_the_step_are_ignored() -> None:
    """Rows past the step's tokens are padding with arbitrary content."""
    worker = Worker("s")
    worker.step([("a", 0, 4)], new={"a": plan(0, 10, 9)}, wrong=[(3, 0)])
    worker.buffer.nonfinite[10:] = 1
    worker.step([("a", 4, 2)])
    assert [sorted(step.faults) for step in worker.sessions["s"].steps] == [[0], []]


def test_wrong_positions_fail_only_their_session() -> None:
    """A batch with an unexpected layout ends the session; the error names the position that was fed."""
    worker = Worker("s")
    worker.step([("a", 0, 2)], new={"a": plan(0, 10, 2)}, shift=1)
    assert ["was fed position 0" in reason for reason in worker.sessions["s"].reasons] == [True]
    assert worker.sessions["s"].steps == []


def test_sessions_that_ended_leave_nothing_behind() -> None:
    """A server runs thousands of extractions, but the cost of a step does not grow with ended sessions."""
    worker = Worker()
    for number in range(20):
        name = f"s{number}"
        worker.sessions[name] = Session()
        worker.capture.open(name, worker.sessions[name])  # type: ignore[arg-type]
        worker.step([("a", 0, 2)], new={"a": plan(0, 10, 9, session=name)})
        worker.capture.close(name)
        assert len(worker.sessions[name].received()) == 1
    assert (worker.capture.active, worker.capture.open_sessions) == (False, ())
    assert worker.capture._backpressure_before == {}


@pytest.mark.parametrize("wrong", [{"begin": -1}, {"begin": 5}, {"row": -1}, {"index": -1}])
def test_an_invalid_plan_is_refused(wrong: dict[str, int]) -> None:
    """A plan needs 0 <= begin <= end, and no negative row or index."""
    with pytest.raises(ValueError, match="a plan needs 0 <= begin <= end"):
        Plan(**(plan(0, 10, 2) | wrong))
