"""Device transfers in a real engine: late streams, delivery on another thread, calls in the order of sending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.instructions import Instruction
from sparcom_data.verify import verify_archive

pytestmark = pytest.mark.engine


@pytest.fixture
def late_engine(
    start_engine: Callable[..., Any], tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Start a tiny Mistral whose worker captures as on a device."""
    monkeypatch.setattr(
        "sparcom_extractor.launch.start.worker_class",
        lambda _: "sparcom_verification.testing.rehearsal.RehearsalWorker",
    )
    return start_engine(
        tiny_model("mistral"), max_num_batched_tokens=64, max_num_seqs=8, max_model_len=320, gpu_memory_utilization=0.5
    )


def test_masks_and_counts_arrive_whole(late_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path) -> None:
    """Prompts and generated tokens pass ring and drain thread: archives verify, and counts equal the masks' sums."""
    options = {"positions": "all", "max_tokens": 6}
    masks = late_engine.extract(mixed_instructions, tmp_path / "masks.zarr", **options)
    tokenizer = late_engine.engine.tokenizer
    checks = verify_archive(masks, lambda texts: tokenizer(list(texts))["input_ids"])
    assert [check.findings for check in checks if not check.passed] == []
    counts = late_engine.extract(mixed_instructions, tmp_path / "counts.zarr", granularity="count", **options)
    table, differing = masks.instructions, 0
    for index in range(len(table)):
        start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
        bits = np.unpackbits(masks.read_active(start, stop), axis=-1, bitorder="little")[..., : masks.neurons]
        differing += int(np.abs(bits.sum(axis=0) - counts.read_counts(index, index + 1)[0].astype(np.int64)).sum())
    assert differing <= 3, "batches differ between the runs, and with them the rounding of a gate near zero"
    (statistics,) = late_engine.loop.run(late_engine.engine.call_workers("sparcom_statistics"))
    assert statistics["sent_bytes"] > 0
    memory = masks.attributes.engine.model_dump()["capture_memory"]
    assert set(memory) == {"step_buffer_bytes", "device_ring_bytes", "pinned_bytes"}
