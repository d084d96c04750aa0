"""Makes the form that annotators fill in, from files of instructions.

1. Read the files; what cannot be shown to people is refused. 2. Where asked, draw a sample of each category.
3. Shuffle. Both draws sort by a hash of seed and item, so that they depend neither on the order of the files nor on a
library's random numbers, and a smaller sample is part of a larger one. Knows nothing of how a form looks.
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
    """The instructions of some files, in their order."""

    paths: tuple[Path, ...]
    instructions: tuple[Instruction, ...]

    @cached_property
    def sha256(self) -> str:
        """Of the instructions in the order of their ids: the same whatever order the files come in."""
        return dataset_sha256(sorted(self.instructions, key=lambda instruction: instruction.id))

    @cached_property
    def by_id(self) -> dict[str, Instruction]:
        """The instructions by their ids."""
        return {instruction.id: instruction for instruction in self.instructions}

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that occur: the known ones in their order, then others by name, whatever order the files come in."""
        found = {item.category for item in self.instructions if item.category}
        return (*(name for name in CATEGORIES if name in found), *sorted(found - set(CATEGORIES)))


def read_data(paths: Sequence[Path]) -> DataSet:
    """Read files of instructions that people can read.

    Raises:
        InvalidInputError: naming every line that breaks a rule, every id that occurs twice, and every instruction that
            is given as token ids.
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
    problems += [f"{problem}; take one of them out" for problem in _repeated(paths, instructions)]
    if problems:
        raise InvalidInputError(problems)
    return DataSet(tuple(paths), tuple(instructions))


def _repeated(paths: Sequence[Path], instructions: Iterable[Instruction]) -> list[str]:
    """Ids that several files share; within a file, its reading has told them."""
    return duplicate_id_problems(instruction.id for instruction in instructions) if len(paths) > 1 else []


def make_form(data: DataSet, *, sample: int | None = None, seed: int = 0) -> Form:
    """A form over all instructions, or over `sample` of each category, in an order shuffled by `seed`.

    Raises:
        InvalidInputError: a category has fewer instructions than are to be drawn of it.
    """
    chosen = data.instructions if sample is None else _sample(data.instructions, sample, seed)
    order = sorted(chosen, key=lambda instruction: draw(seed, "order", item_sha256(instruction)))
    criteria = criteria_for(data.categories)
    ask = tuple(criterion.name for criterion in criteria)
    items = tuple(form_item(number, instruction, ask) for number, instruction in enumerate(order, start=1))
    return Form(kind="annotation", dataset=data.sha256, criteria=criteria, items=items)


def form_item(number: int, instruction: Instruction, ask: tuple[str, ...]) -> FormItem:
    """An instruction as a form carries it: without category, source and licence."""
    return FormItem(
        number=number,
        id=instruction.id,
        sha256=item_sha256(instruction),
        text=instruction.text,
        messages=instruction.messages,
        ask=ask,
    )


def draw(seed: int, purpose: str, name: str) -> bytes:
    """A random key to sort by: of `name`, by `seed`, another one for each purpose."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).digest()


def _sample(instructions: Sequence[Instruction], size: int, seed: int) -> list[Instruction]:
    counts = Counter(instruction.category for instruction in instructions)
    if problems := [
        f"{size} of each category were asked for, and {name or 'no category'!r} has {count}: ask for {count} or fewer"
        for name, count in counts.items()
        if count < size
    ]:
        raise InvalidInputError(problems)
    ordered = sorted(instructions, key=lambda instruction: draw(seed, "sample", item_sha256(instruction)))
    chosen: list[Instruction] = []
    for name in counts:
        chosen += [instruction for instruction in ordered if instruction.category == name][:size]
    return chosen
