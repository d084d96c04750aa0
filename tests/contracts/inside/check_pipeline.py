"""Pipeline stages of vLLM's own models: each captures and writes its layers, and together they make one archive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.testing import random_attributes
from sparcom_data.verify import verify_archive
from sparcom_extractor.capture.discovery.describe import describe_found
from sparcom_extractor.capture.ops.activation_reference import pack_signs
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation
from sparcom_extractor.capture.ops.step_buffers import check_write_counters
from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.ranks import RankReplies, merge_descriptions
from sparcom_extractor.vllm_surface.moe import MOE_RUNNER
from sparcom_extractor.worker.mixin import CaptureMixin
from sparcom_extractor.writer.rows import RANGES, StepRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import archive_parts

ROWS, LAYERS = 11, 5
Truth = dict[tuple[str, int], NDArray[Any]]  # by array and layer number of the model


@contextmanager
def stage_of(config: Any, rank: int, stages: int) -> Iterator[None]:
    """Make this process stage `rank`, for vLLM's configuration and for its models."""
    from vllm.distributed import parallel_state

    config.parallel_config.rank = rank
    group = parallel_state._PP
    parallel_state._PP = SimpleNamespace(
        rank_in_group=rank,
        world_size=stages,
        is_first_rank=rank == 0,
        is_last_rank=rank == stages - 1,
    )
    try:
        yield
    finally:
        parallel_state._PP = group


class Stage(CaptureMixin):
    """A worker with a model and no engine."""

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        self.vllm_config, self.device = config, torch.device("cpu")
        self.model_runner = SimpleNamespace(get_model=lambda: model)  # type: ignore[assignment]
        self._capture = self._install_capture()

    def run(self, model: Any, truth: Truth) -> dict[str, NDArray[Any]]:
        """Run the captured parts of the layers that vLLM built, with inputs that differ by layer. Note in `truth` what
        each layer must store; return the rows."""
        for number, block in enumerate(model.model.layers):
            for module in block.modules():
                if isinstance(module, CapturedActivation):
                    shared = module.capture.buffer is self.capture.steps.buffers.shared
                    gate = self._gate(number, int(shared), module.capture.buffer.neurons)
                    torch.ops.sparcom.capture_signs(torch.cat([gate, gate], dim=1), module.layer, module.number)
                    name = "shared_expert_neuron/active" if shared else "neuron/active"
                    truth[name, number] = pack_signs(gate, 0.0)
                elif any(base.__name__ == MOE_RUNNER for base in type(module).__mro__):
                    self._run_experts(number, module, truth)
        buffers = self.capture.steps.buffers
        counters = buffers.write_counters.numpy()
        check_write_counters(counters, ROWS, list(map(str, buffers.widths.columns())), padded=False)
        return {name: array[:ROWS].numpy() for name, array in buffers.arrays().items()}

    def _run_experts(self, number: int, runner: Any, truth: Truth) -> None:
        buffers = self.capture.steps.buffers
        assert buffers.experts is not None
        top_k, neurons = buffers.experts.top_k, buffers.experts.neurons
        experts = runner.routed_experts.quant_method.moe_kernel.fused_experts
        ids = torch.rand(ROWS, runner.moe_config.num_experts, generator=seeded(number)).argsort(dim=1)[:, :top_k]
        weights = torch.rand(ROWS, top_k, generator=seeded(number))
        experts.apply(topk_ids=ids, topk_weights=weights)
        gate = self._gate(number, 2, neurons, ROWS * top_k)
        experts.activation(runner.activation, torch.empty_like(gate), torch.cat([gate, gate], dim=1))
        truth["router/expert", number] = ids.numpy().astype(np.uint16)
        truth["expert_neuron/active", number] = pack_signs(gate, 0.0).reshape(ROWS, top_k, -1)

    @staticmethod
    def _gate(number: int, kind: int, neurons: int, rows: int = ROWS) -> torch.Tensor:
        return torch.randn(rows, neurons, generator=seeded(10 * number + kind), dtype=torch.float32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("architecture", ["llama", "gemma", "qwen2-moe", "deepseek-v3"])
@pytest.mark.parametrize("stages", [2, 3])
def test_stages_write_one_archive(
    tmp_path: Path,
    make_model_folder: Callable[..., Path],
    engine_config: Callable[..., Any],
    build: Any,
    architecture: str,
    stages: int,
) -> None:
    """Stages find their own layers only, and what each layer stores is found at its place in the archive."""
    heads = {"qk_nope_head_dim": 128, "v_head_dim": 128} if architecture == "deepseek-v3" else {}
    folder = make_model_folder(architecture, {"layers": LAYERS}, **heads)
    truth: Truth = {}
    described, made = [], []
    for rank in range(stages):
        config = engine_config(folder, pipeline_parallel_size=stages, max_num_batched_tokens=64, max_num_seqs=16)
        with build(config, stage=lambda config=config, rank=rank: stage_of(config, rank, stages)) as model:
            prepare_experts(model)
            stage = Stage(config, model)
            described.append(describe_found(stage.capture.found))
            made.append((stage._rank_position(), stage.run(model, truth)))
    merged = merge_descriptions(described)
    assert merged.refusal is None
    own = [[*item.layer_ids, *(item.moe.layer_ids if item.moe else [])] for item in described]
    assert sorted(chain.from_iterable(own)) == list(range(LAYERS)), own
    assert all(own)

    path, layout = tmp_path / "a.zarr", plan_layout([ROWS], "prompt", 0)
    attributes = random_attributes(len(merged.layer_ids), merged.neurons, moe=merged.moe)
    renamed = attributes.model.model_copy(update={"layer_ids": list(merged.layer_ids)})
    engine = attributes.engine.model_copy(update={"pipeline_parallel_size": stages})
    attributes = attributes.model_copy(update={"model": renamed, "engine": engine})
    create_archive(path, attributes, InstructionColumns(["0"], *([""] for _ in range(4))), layout, chunk_tokens=4)
    replies = [write(*archive_parts(path, position), rows) for position, rows in made]
    assert [item.index for item in RankReplies().merge(replies).completed] == [0]
    committer = ArchiveCommitter(path)
    committer.complete([CompletedInstruction(0, 0, np.zeros(ROWS, np.int32), np.arange(ROWS, dtype=np.int32))])
    committer.close()

    archive = open_archive(path)
    assert not any(check.findings for check in verify_archive(archive, None))
    axes = {"neuron/active": list(merged.layer_ids)}
    for name, number in truth:
        axis = axes.get(name) or (merged.moe.layer_ids if merged.moe else [])
        stored = archive.read_rows(name, 0, ROWS)[:, axis.index(number)]
        np.testing.assert_array_equal(stored, truth[name, number], err_msg=f"{name} of layer {number}")
    assert {number for _, number in truth} == set(range(LAYERS))


def prepare_experts(model: torch.nn.Module) -> None:
    """Let vLLM choose the kernels of the experts, and replace these kernels by nothing."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if hasattr(method, "moe_kernel") and hasattr(module, "w13_weight"):
            method.process_weights_after_loading(module)
            experts = method.moe_kernel.fused_experts
            experts.apply, experts.activation = (lambda **_: None), (lambda *_, **__: None)


def write(parts: Any, instructions: int, rows: dict[str, NDArray[Any]]) -> Any:
    """Write all rows as one instruction; return the last reply."""
    session = CaptureSession(parts, instructions)
    ranges = np.array([(0, 0, ROWS, 0, ROWS, 0, -1)], dtype=RANGES)
    session.append_rows(StepRows(ranges, rows, np.arange(ROWS, dtype=np.int32), np.arange(ROWS)))
    session.finish_requests([FinishedRequest(0, 0, ROWS, ROWS)])
    session.end_input()
    deadline = time.monotonic() + 20
    while not (found := session.poll()).completed:
        assert time.monotonic() < deadline
        assert found.error is None, found.error
        time.sleep(0.01)
    session.close()
    return found
