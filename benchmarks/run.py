"""Measure the cost of capture (`make bench`), as ratios within one run. Writes bench-output/results.json.

    throughput   tokens/s: capture and writing, vLLM alone, for prompts and for responses (peers: `make bench-peers`)
    moe          tokens/s of MoE models: capture and writing, vLLM alone
    writing      MB/s of masks written to an archive, and of the same bytes written to raw files
    memory       peak memory of the engine's worker at 100 and at 1,000 instructions
    host         time per decode step in which capture holds the interpreter lock of vLLM's process, by thread
    service      latency of polls and speed of an extraction while 100 clients use the service; thousands of connections
    analysis     GB/s of counting, seconds and peak memory of `analyze`, at LLaMA-2-7B's shape

Absolute figures depend on the machine and its load. Compare only ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from host import measure_host
from llama_analysis import measure_analysis
from moe_throughput import measure_moe_throughput
from service import measure_service
from throughput import measure_memory, measure_throughput
from workload import Workload
from writing import measure_writing

from sparcom_extractor.vllm_surface.versions import installed_vllm

PARTS = {
    "throughput": measure_throughput,
    "moe": measure_moe_throughput,
    "writing": measure_writing,
    "memory": measure_memory,
    "host": measure_host,
    "service": measure_service,
    "analysis": measure_analysis,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"measure only these of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"), help="measure this model")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="write results to this folder")
    parser.add_argument("--instructions", type=Path, help="run this file (default: the shipped synthetic instructions)")
    parser.add_argument("--quick", action="store_true", help="run fewer rounds on less data")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"parts must be among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    workload = Workload(arguments.model, arguments.output, arguments.instructions, arguments.quick)
    workload.output.mkdir(parents=True, exist_ok=True)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or "unknown",
        "vllm": installed_vllm(),
        "torch": version("torch"),
        "quick": workload.quick,
    }
    for name in arguments.parts or PARTS:
        print(f"\n== {name}", flush=True)
        results[name] = found = asyncio.run(PARTS[name](workload))
        for key, value in found.items():
            print(f"{key:<58} {value:>12,.3f}" if isinstance(value, float) else f"{key:<58} {value:>12}", flush=True)
    (workload.output / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
