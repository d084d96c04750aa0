"""Settings of one benchmark run, and shared helpers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from sparcom_data.instructions import Instruction
from sparcom_data.instructions.files import read_instructions
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.prompts import load_tokenizer, make_prompts
from sparcom_hexainst.build.synthetic import synthetic_instructions


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, the folder for temporary files, instructions, and whether to run in a third of the time.

    instructions_file: by default the shipped synthetic instructions.
    """

    model: Path
    output: Path
    instructions_file: Path | None = None
    quick: bool = False

    @property
    def rounds(self) -> int:
        """Number of measured rounds."""
        return 2 if self.quick else 7

    def instructions(self, per_category: int) -> list[Instruction]:
        """Return the first `per_category` instructions of each category; a third of them in a quick run."""
        count = max(1, per_category // 3) if self.quick else per_category
        if self.instructions_file is None:
            return synthetic_instructions(count)
        by_category: dict[str, list[Instruction]] = {}
        for item in read_instructions(self.instructions_file):
            by_category.setdefault(item.category, []).append(item)
        return [item for items in by_category.values() for item in items[:count]]

    def token_ids(self, instructions: Sequence[Instruction], max_model_len: int = 8192) -> list[list[int]]:
        """Return the token ids of each prompt."""
        tokenizer = load_tokenizer(str(self.model))
        prompts = make_prompts(tokenizer, instructions, ExtractionOptions(), max_model_len - 1)
        return [prompt.ids.tolist() for prompt in prompts]


def many_instructions(count: int) -> list[Instruction]:
    """Return `count` different instructions of about 86 tokens."""
    base = cycle(synthetic_instructions(20))
    return [Instruction(id=str(number), text=f"{number}. {next(base).text}") for number in range(count)]


def peak_mib(pid: int | str = "self") -> float:
    """Return the peak resident memory of a process in MiB (VmHWM).

    getrusage would report the parent's peak if it were larger.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def describe(values: Sequence[float]) -> str:
    """Return median (lowest to highest)."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
