"""The instructions that benchmarks run: natural ones where they lie beside the project, otherwise the demo's."""

from __future__ import annotations

from pathlib import Path

from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_hexainst.build.synthetic import synthetic_instructions

NATURAL = Path("../shared/hexainst-natural")


def natural(per_category: int) -> list[Instruction]:
    """The first of every category; as many of the demo's where the natural ones are not there."""
    sources = sorted(NATURAL.glob("*.jsonl"))
    if not sources:
        return demo()[: 6 * per_category]
    return [item for source in sources for item in read_jsonl(source)[:per_category]]


def demo() -> list[Instruction]:
    return synthetic_instructions(20)


def many(count: int) -> list[Instruction]:
    """`count` different instructions, about 86 tokens each."""
    base = demo()
    return [
        Instruction(
            id=str(number),
            category=base[number % len(base)].category,
            text=f"{number}. {base[number % len(base)].text}",
        )
        for number in range(count)
    ]
