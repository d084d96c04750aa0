"""The synthetic half: 600 instructions written for this project, shipped as one file of JSON lines a category.

Within a category they are ordered so that any first n of them span short and long ones alike.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_hexainst.categories import CATEGORIES, ITEMS


def synthetic_files() -> list[Path]:
    """The files, in the order of the categories."""
    folder = Path(str(files("sparcom_hexainst"))) / "data"
    return [folder / f"{category.lower()}.jsonl" for category in CATEGORIES]


def synthetic_instructions(per_category: int = ITEMS, skip: int = 0) -> list[Instruction]:
    """The synthetic half, or so many of each category, those after its first `skip`.

    Raises:
        InvalidInputError: more are asked for than there are.
    """
    if not (1 <= per_category <= ITEMS - skip and skip >= 0):
        behind = f" after its first {skip}" if skip else ""
        raise InvalidInputError(
            f"the synthetic half has 1 to {ITEMS - skip} instructions a category{behind}; got {per_category}"
        )
    return [item for path in synthetic_files() for item in read_jsonl(path)[skip : skip + per_category]]
