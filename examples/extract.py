"""Extract masks in your own Python, without a server: python examples/extract.py MODEL INSTRUCTIONS NAME.zarr."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sparcom_data.archive import open_archive
from sparcom_data.instructions.files import read_instructions
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings


async def extract(model: str, source: Path, output: Path) -> None:
    """Start an engine, run every instruction into the archive, and stop the engine."""
    engine = await CaptureEngine.start(EngineSettings(model=model, kv_cache_gib=0.5))
    try:
        extraction = engine.prepare(read_instructions(source), ExtractionOptions(positions="prompt"), output)
        progress = await extraction.run(lambda now: print(f"{now.complete} of {now.instructions} instructions"))
    finally:
        await engine.close()
    print(f"{progress.tokens_done} tokens in {progress.seconds:.1f} s")


if __name__ == "__main__":  # vLLM starts processes, which import this file
    name, instructions, path = sys.argv[1:]
    asyncio.run(extract(name, Path(instructions), Path(path)))
    print(open_archive(path))
