"""Make the form that annotators fill in, from files of instructions.

1. Read the files; refuse instructions that people cannot read. 2. Draw a sample of each category, if requested.
3. Shuffle. Both draws sort by a hash of seed and item. They depend neither on the order of the files nor on a random
number generator, and a smaller sample is part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, dataset_sha256, duplicate_id_problems, read_jsonl
from sparcom_hexainst.annotation.criteria import criteria_for
from sparcom_hexainst.annotation.schema import Form, FormItem, item_sha256
from sparcom_hexainst.categories import CATEGORIES


@dataclass(frozen=True)
class DataSet:
    """Instructions of one or more files, in their order."""

    paths: tuple[Path, ...]
    instructions: tuple[Instruction, ...]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the instructions, sorted by id, so independent of the order of the files."""
        return dataset_sha256(sorted(self.instructions, key=lambda instruction: instruction.id))

    @cached_property
    def by_id(self) -> dict[str, Instruction]:
        """Instructions keyed by id."""
        return {instruction.id: instruction for instruction in self.instructions}

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that occur: known ones in their order, then others by name, independent of the order of files."""
        found = {item.category for item in self.instructions if item.category}
        return (*(name for name in CATEGORIES if name in found), *sorted(found - set(CATEGORIES)))


def read_data(paths: Sequence[Path]) -> DataSet:
    """Read files of human-readable instructions.

    Raises:
        InvalidInputError: lists every line that breaks a rule, every repeated id, and every instruction given as token
            ids.
    """
    problems: list[str] = []
    instructions: list[Instruction] = []
    for path in paths:
        try:
            found = read_jsonl(path)
        except InvalidInputError as error:
            problems += error.problems
            continue
        problems += [
            f"{path.name}, id {item.id!r}: people cannot read token_ids; give text or messages instead"
            for item in found
            if item.token_ids is not None
        ]
        instructions += found
    problems += [f"{problem}; remove all but one" for problem in _repeated(paths, instructions)]
    if problems:
        raise InvalidInputError(problems)
    return DataSet(tuple(paths), tuple(instructions))


def _repeated(paths: Sequence[Path], instructions: Iterable[Instruction]) -> list[str]:
    """Return a problem per id that several files share; reading reports repeats within one file."""
    return duplicate_id_problems(instruction.id for instruction in instructions) if len(paths) > 1 else []


def make_form(data: DataSet, *, sample: int | None = None, seed: int = 0) -> Form:
    """Make a form of all instructions, or of `sample` per category, in an order shuffled by `seed`.

    Raises:
        InvalidInputError: a category has fewer than `sample` instructions.
    """
    chosen = data.instructions if sample is None else _sample(data.instructions, sample, seed)
    order = sorted(chosen, key=lambda instruction: draw(seed, "order", item_sha256(instruction)))
    criteria = criteria_for(data.categories)
    ask = tuple(criterion.name for criterion in criteria)
    items = tuple(form_item(number, instruction, ask) for number, instruction in enumerate(order, start=1))
    return Form(kind="annotation", dataset=data.sha256, criteria=criteria, items=items)


def form_item(number: int, instruction: Instruction, ask: tuple[str, ...]) -> FormItem:
    """Return an instruction as a form item, without category, source and licence."""
    return FormItem(
        number=number,
        id=instruction.id,
        sha256=item_sha256(instruction),
        text=instruction.text,
        messages=instruction.messages,
        ask=ask,
    )


def draw(seed: int, purpose: str, name: str) -> bytes:
    """Return a pseudo-random sort key of `name`, which depends on `seed` and `purpose`."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).digest()


def _sample(instructions: Sequence[Instruction], size: int, seed: int) -> list[Instruction]:
    counts = Counter(instruction.category for instruction in instructions)
    if problems := [
        f"each category must have {size} instructions; {name or 'no category'!r} has {count}: sample {count} or fewer"
        for name, count in counts.items()
        if count < size
    ]:
        raise InvalidInputError(problems)
    ordered = sorted(instructions, key=lambda instruction: draw(seed, "sample", item_sha256(instruction)))
    chosen: list[Instruction] = []
    for name in counts:
        chosen += [instruction for instruction in ordered if instruction.category == name][:size]
    return chosen
