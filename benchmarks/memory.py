"""Peak memory of the engine's worker process at 100 and at 1,000 instructions, each in a fresh engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
from workload import many

from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings

COUNTS = (100, 1000)


async def measure_memory(model: Path, output: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for count in COUNTS:
        path = output / "memory.zarr"
        shutil.rmtree(path, ignore_errors=True)
        engine = await CaptureEngine.start(EngineSettings(str(model)))
        progress = await engine.prepare(many(count), ExtractionOptions(), path).run()
        assert progress.complete == count, progress
        results[f"peak MiB of the largest engine process, {count:,} instructions"] = _peak_mib()
        results[f"tokens, {count:,} instructions"] = progress.tokens_done
        await engine.close()
        shutil.rmtree(path, ignore_errors=True)
    peaks = [value for name, value in results.items() if name.startswith("peak")]
    results["peak at 1,000 / peak at 100"] = peaks[1] / peaks[0]
    return results


def _peak_mib() -> float:
    """VmHWM of the largest child: the worker, which holds the weights."""
    peaks = []
    for child in psutil.Process().children(recursive=True):
        status = Path(f"/proc/{child.pid}/status").read_text()
        peaks += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks)
