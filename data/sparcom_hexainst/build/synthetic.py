"""The synthetic half: 600 instructions written for this project, shipped as one JSON Lines file per category.

Within a category, any first n instructions include both short and long ones.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, read_jsonl
from sparcom_hexainst.categories import CATEGORIES, ITEMS


def synthetic_files() -> list[Path]:
    """Return the files, in the order of the categories."""
    folder = Path(str(files("sparcom_hexainst"))) / "data"
    return [folder / f"{category.lower()}.jsonl" for category in CATEGORIES]


def synthetic_instructions(per_category: int = ITEMS, skip: int = 0) -> list[Instruction]:
    """Return the synthetic half, or `per_category` instructions of each category after its first `skip`.

    Raises:
        InvalidInputError: a category has fewer instructions.
    """
    if not (1 <= per_category <= ITEMS - skip and skip >= 0):
        after = f" after the first {skip}" if skip else ""
        raise InvalidInputError(
            f"instructions per category{after} must be 1 to {ITEMS - skip} in the synthetic half; got {per_category}"
        )
    return [item for path in synthetic_files() for item in read_jsonl(path)[skip : skip + per_category]]
