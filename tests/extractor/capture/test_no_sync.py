"""On CUDA, a step never waits for the device. Tensors without values and copies that never end prove it.

Code within a CUDA graph also allocates nothing but its result.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops import activation_kernel, captured_activation, topk_kernel
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation, LayerCapture, capture_projection
from sparcom_extractor.capture.ops.count_kernel import CountKernels
from sparcom_extractor.capture.ops.experts import install_experts
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue, transfer_bytes
from sparcom_extractor.protocol import PLAN_KEY
from sparcom_extractor.vllm_surface.runner import BatchRows

LAYERS, NEURONS, ROWS = 4, 40, 32
TOP_K, EXPERTS, EXPERT_NEURONS = 4, 60, 24
CUDA = torch.device("meta")  # stands for the device: shapes without values, so reading one fails


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that would make the host wait for a CUDA device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [item for item in (*args, *(kwargs or {}).values()) if isinstance(item, torch.Tensor)]
        on_device = any(item.device.type == "meta" for item in tensors)
        to_host = isinstance(result, torch.Tensor) and result.device.type == "cpu"
        if on_device and to_host:
            raise AssertionError(f"{func} brings values from the device to the host")
        if func is torch.ops.aten.copy_.default and len({item.device.type for item in tensors}) > 1:
            waits = not (args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking", False))
            if waits:
                raise AssertionError(f"{func} between host and device waits: say non_blocking=True")
        return result


class Streams:
    """Streams of a CUDA device that never finishes; its tensors have shapes but no values."""

    def memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=CUDA)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> NeverEnds:
        assert target.shape == source.shape
        return NeverEnds(threading.get_ident())

    def enter_thread(self) -> None:
        """Do nothing: the host has one device."""

    def launch(self, work: Callable[[], object]) -> None:
        work()


class NeverEnds:
    """An event that never happens during the test; a step must not wait for it."""

    over = threading.Event()

    def __init__(self, step_thread: int) -> None:
        self._step_thread = step_thread

    def synchronize(self) -> None:
        assert threading.get_ident() != self._step_thread, "the step waits for the device"
        self.over.wait()
        raise RuntimeError("the test is over")


class Session:
    """A session that no rows reach."""

    def __init__(self, counts: bool) -> None:
        self.stores_counts = counts

    def end_input(self) -> None:
        raise AssertionError("nothing is delivered here")


@pytest.fixture
def capture(request: pytest.FixtureRequest) -> Iterator[StepCapture]:
    """Return the capture of a GPU worker, on a device without values, with a session of masks and one of counts. The
    model is dense, or an MoE model, whose rows are counted on the host."""
    moe = getattr(request, "param", "dense") == "moe"
    NeverEnds.over.clear()
    with NoHostReads():
        widths = Widths(range(2), NEURONS, range(2), TOP_K, EXPERT_NEURONS, NEURONS)
        widths = widths if moe else Widths(range(LAYERS), NEURONS)
        buffers = StepBuffers(ROWS, widths, CUDA)
        size = 1 << 20
        assert size > transfer_bytes([*buffers.arrays().values(), buffers.nonfinite], buffers.write_counters)
        queue = DeviceTransferQueue(Streams(), ring_bytes=size, pinned_bytes=size)
        counters = None
        if buffers.dense is not None and not moe:
            counters = DeviceCounters(buffers.dense, queue, 8, kernels=CountKernels(*[lambda *_: None] * 3))
            counters.allocate()
        capture = StepCapture(buffers, queue, counters)
        for name in ("token", "count"):
            capture.open(name, Session(name == "count"))  # type: ignore[arg-type]
        yield capture
        assert queue.backpressure_seconds == 0
        NeverEnds.over.set()


def new_request(session: str, index: int, end: int, *, response: bool = False) -> Any:
    plan = {"session": session, "index": index, "row": 100 * index, "begin": 0, "end": end, "length_unknown": response}
    return SimpleNamespace(req_id=f"{session}-{index}", sampling_params=SimpleNamespace(extra_args={PLAN_KEY: plan}))


def step(capture: StepCapture, rows: list[tuple[str, int, int]], **scheduled: Any) -> None:
    """Run a step of consecutive (request, first position, rows)."""
    count = sum(item[2] for item in rows)
    empty = {"finished_req_ids": set(), "preempted_req_ids": None, "scheduled_new_reqs": []}
    capture.before_step(SimpleNamespace(**(empty | scheduled)))
    capture.after_step(
        BatchRows(
            request_ids=[item[0] for item in rows],
            start=np.cumsum([0, *(item[2] for item in rows)]).astype(np.int64),
            first_position=np.array([item[1] for item in rows], dtype=np.int64),
            ids=torch.empty(count, dtype=torch.int32, device=CUDA),
            positions=torch.empty(count, dtype=torch.int64, device=CUDA),
        )
    )


class Launches:
    """Replaces a jitted kernel: records launches, and checks that grid and plain arguments come from the host."""

    def __init__(self, name: str, noted: list[str]) -> None:
        self._name, self._noted = name, noted

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(type(size) is int for size in grid)

        def launch(*arguments: Any, **_constants: Any) -> None:
            assert all(isinstance(item, int | float | str | torch.Tensor | None) for item in arguments)
            self._noted.append(self._name)

        return launch


class TritonExperts:
    """Named like vLLM's class; rows of its gate_up are (token, k)."""

    def __init__(self) -> None:
        self.quant_config = SimpleNamespace(block_shape=None)

    def activation(self, _kind: str, output: torch.Tensor, gate_up: torch.Tensor) -> None:
        output.copy_(gate_up[:, :EXPERT_NEURONS])

    def apply(self, *, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> None:
        assert topk_ids.shape == topk_weights.shape
        rows = topk_ids.numel()
        self.activation("silu", torch.empty(rows, EXPERT_NEURONS, device=CUDA), torch.empty(rows, 48, device=CUDA))


class SiluAndMul(torch.nn.Module):
    """Named like vLLM's class."""

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        return gate_up[..., :NEURONS]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the launches of capture's kernels, in order."""
    noted: list[str] = []
    monkeypatch.setattr(activation_kernel, "_gated_activation_kernel", Launches("activation", noted))
    monkeypatch.setattr(topk_kernel, "_store_topk_kernel", Launches("routes", noted))
    # the arguments are on "meta", so these ops would dispatch to their fake implementations
    monkeypatch.setattr(torch.ops.sparcom, "capture_signs", captured_activation._capture_signs)
    return noted


class Replayed:
    """One MoE layer with shared experts, one dense layer and one quantized layer, on a device without values."""

    def __init__(self, numerics: Numerics | None, device: torch.device = CUDA) -> None:
        widths = Widths(range(2), NEURONS, range(2), TOP_K, EXPERT_NEURONS, NEURONS)
        buffers = StepBuffers(ROWS, widths, device)
        assert buffers.dense is not None
        assert buffers.routes is not None
        assert buffers.experts is not None
        assert buffers.shared is not None
        self.device = device
        self.shared = CapturedActivation(LayerCapture(buffers.shared, 1, SiluAndMul(), SILU, Numerics.VLLM_KERNEL))
        self.dense = CapturedActivation(LayerCapture(buffers.dense, 0, SiluAndMul(), SILU, None))
        self.quantized = torch.nn.Identity()
        capture_projection(self.quantized, LayerCapture(buffers.dense, 1, SiluAndMul(), SILU, None))
        self.experts = TritonExperts()
        method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=self.experts))
        self.router = SimpleNamespace(select_experts=lambda **_: None)
        routed = SimpleNamespace(quant_method=method)
        runner = SimpleNamespace(routed_experts=routed, activation="silu", router=self.router)
        layer = MoeLayer(1, "mlp", runner, SILU, EXPERTS, TOP_K, EXPERT_NEURONS, EXPERT_NEURONS, 1.5, None)
        install_experts(layer, 1, buffers.routes, buffers.experts, numerics)

    def moe(self, rows: int, ids_dtype: torch.dtype = torch.int32) -> Callable[[], object]:
        """Return a step's call of router, experts and shared experts; its inputs are made now."""
        ids = torch.empty(rows, TOP_K, dtype=ids_dtype, device=self.device)
        weights, logits = torch.empty_like(ids, dtype=torch.float32), torch.empty(rows, EXPERTS, device=self.device)
        gate_up = torch.empty(rows, 2 * NEURONS, device=self.device)

        def run() -> None:
            self.router.select_experts(hidden_states=None, router_logits=logits)
            self.experts.apply(topk_ids=ids, topk_weights=weights)
            captured_activation._gated_activation(gate_up, self.shared.layer, self.shared.number)

        return run

    def ffns(self, rows: int) -> Callable[[], object]:
        """Return a step's call of the dense layers, with an input of the shape of vLLM's Transformers backend too."""
        gate_up = torch.empty(rows, 2 * NEURONS, device=self.device)
        return lambda: (self.dense(gate_up), self.dense(gate_up[None]), self.quantized(gate_up))


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64, torch.uint32], ids=str)
@pytest.mark.parametrize("numerics", [Numerics.VLLM_KERNEL, None])
def test_no_moe_layer_waits_for_the_device(launched: list[str], ids_dtype: torch.dtype, numerics: Any) -> None:
    """A layer takes one launch each for routes, experts' gates and shared experts. No value is read. Without the
    kernel's output, vLLM's own activation follows."""
    with NoHostReads():
        replayed = Replayed(numerics)
        for rows in (1, 7, ROWS):
            launched.clear()
            replayed.moe(rows, ids_dtype)()
            assert launched == ["routes", "activation", "activation"]


class Allocations(TorchDispatchMode):
    """Collects the operations that return memory which none of their arguments holds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {item.untyped_storage()._cdata for item in args if isinstance(item, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage()._cdata not in given:
            self.found.append((str(func), tuple(result.shape)))
        return result


@pytest.mark.parametrize("numerics", [Numerics.VLLM_KERNEL, None])
def test_a_replayed_layer_allocates_its_result_only(launched: list[str], numerics: Any) -> None:
    """A CUDA graph keeps every allocation of its layers. Only the activation output of the fused kernel is one."""
    replayed = Replayed(numerics)
    for rows in (1, ROWS):
        steps = replayed.moe(rows), replayed.ffns(rows)
        # The stand-in for vLLM's experts makes the first two itself.
        moe = [(rows * TOP_K, EXPERT_NEURONS), (rows * TOP_K, 2 * EXPERT_NEURONS), (rows, NEURONS)]
        for run, expected in zip(steps, (moe, []), strict=True):
            with Allocations() as mode:
                run()
            assert [shape for _, shape in mode.found] == expected, mode.found


READS = {"item", "tolist", "cpu", "numpy", "nonzero", "unique", "synchronize", "any", "all"}
ALLOCATES = {"clone", "contiguous", "to", "zeros", "ones", "empty", "full", "tensor", "cat", "stack", "empty_like"}
CONVERTS = {"int", "float", "bool"}


def host_reads(code: str) -> list[str]:
    """Return the calls of a function that read a tensor's value or allocate, outside of branches for the CPU."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "device.type" in (test := ast.unparse(node.test)):
            for child in node.orelse if "==" in test else node.body:
                visit(child)
            return
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")
            names = READS | ALLOCATES if len(called) > 1 else CONVERTS
            if called[-1] in names and not all(isinstance(item, ast.Constant) for item in node.args or [node]):
                found.append(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    def body(statements: list[ast.stmt]) -> None:
        for statement in statements:
            visit(statement)
            if isinstance(statement, ast.If) and "device.type != 'cpu'" in ast.unparse(statement.test):
                return  # the rest is for the CPU

    (function,) = ast.parse(textwrap.dedent(code)).body
    body(function.body if isinstance(function, ast.FunctionDef) else [function])
    return found


def test_replayed_code_never_reads_a_value(launched: list[str]) -> None:
    """No function of capture that runs in a layer could read a value on the host, in any of its branches."""
    ran: set[CodeType] = set()
    ops = Path(captured_activation.__file__).parent

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).parent == ops:
            ran.add(frame.f_code)

    for numerics in (Numerics.VLLM_KERNEL, None):
        replayed = Replayed(numerics)
        steps = replayed.moe(3), replayed.ffns(3)
        for run in steps:
            run()  # values that are computed once are cached now
        sys.setprofile(note)
        try:
            for run in steps:
                run()
        finally:
            sys.setprofile(None)
    names = {code.co_name for code in ran}
    assert names >= {"hook", "forward", "run_kernel", "captured_apply", "select_experts", "store_topk", "launch_topk"}
    reads = {code.co_name: host_reads(inspect.getsource(code)) for code in ran if "<" not in code.co_name}
    assert not {name: found for name, found in reads.items() if found}


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("def f(x):\n    if x.device.type == 'cpu':\n        return x.item()\n    return x.view(3)", 0),
        ("def f(x):\n    if x.device.type != 'cpu':\n        return x\n    return x.tolist()", 0),
        ("def f(x):\n    if x.device.type == 'cpu':\n        pass\n    else:\n        return int(x)", 1),
        ("def f(x):\n    return bool(x[0]), x.cpu(), torch.zeros(3, device=x.device), x.clone()", 3),
    ],
)
def test_a_read_in_the_source_is_found(code: str, reads: int) -> None:
    """Reads and allocations count, except in branches for the CPU."""
    assert len(host_reads(code)) == reads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("capture", ["dense", "moe"], indirect=True)
def test_no_step_waits_for_the_device(capture: StepCapture) -> None:
    """New requests, split prompts, decoding, a preemption and finished requests neither read a value nor wait."""
    new = [new_request("token", 0, 9), new_request("count", 0, 6), new_request("count", 1, 9, response=True)]
    step(capture, [("token-0", 0, 5), ("count-0", 0, 6), ("count-1", 0, 4)], scheduled_new_reqs=new)
    step(capture, [("count-1", 4, 1), ("token-0", 5, 4)])
    step(capture, [("count-1", 0, 5)], preempted_req_ids={"count-1"})
    step(capture, [], finished_req_ids={"token-0", "count-0", "count-1"})
    capture.end_input("token")
    assert not capture.active


def test_a_host_read_is_found() -> None:
    """The guard detects a value read, a tensor copied to the host, and a copy that waits."""
    with NoHostReads():
        tensor = torch.zeros(3, dtype=torch.int64, device=CUDA)
        for read in (tensor[0].item, tensor.cpu, tensor.tolist, lambda: tensor.copy_(torch.zeros(3))):
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError), match=r"host|waits|meta"):
                read()
