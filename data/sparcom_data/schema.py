"""The arrays of an archive: name, dtype, dimensions, fill value, description. One place, read by writer and checks.

Which arrays an archive has depends on its granularity: `token` has the token axis and masks on it, `count` has the sums
over each instruction's rows in their place. Fill values are chosen so that what was never written is told from data:
token ids and positions are -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sparcom_data.metadata import Granularity


class State(IntEnum):
    """`instruction/state`."""

    PENDING = 0
    COMPLETE = 1
    FAILED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of the format. dtype `string` is Zarr's variable-length string."""

    name: str
    dtype: str
    dimensions: tuple[str, ...]
    fill_value: int | str
    description: str
    unit: str | None = None


_INSTRUCTION = ("instruction",)
_TOKEN = ("token",)

INSTRUCTION_ARRAYS = (
    ArraySpec("instruction/id", "string", _INSTRUCTION, "", "Unique name of the instruction."),
    ArraySpec("instruction/category", "string", _INSTRUCTION, "", "Category, empty where none was given."),
    ArraySpec("instruction/source", "string", _INSTRUCTION, "", "Where the instruction comes from."),
    ArraySpec(
        "instruction/text",
        "string",
        _INSTRUCTION,
        "",
        "Exactly what was tokenised, after the prompt format was applied; empty where token ids were given.",
    ),
    ArraySpec("instruction/response", "string", _INSTRUCTION, "", "Generated text, empty where nothing was asked."),
    ArraySpec(
        "instruction/token_start",
        "int64",
        _INSTRUCTION,
        0,
        "First row of the instruction on the token axis; where counts are kept instead of rows, the row it would have.",
        "row",
    ),
    ArraySpec("instruction/prompt_length", "int32", _INSTRUCTION, 0, "T of the paper: prompt tokens.", "token"),
    ArraySpec(
        "instruction/token_length",
        "int32",
        _INSTRUCTION,
        0,
        "Rows that hold data, from token_start on, or that were counted; 0 until the instruction is complete.",
        "token",
    ),
    ArraySpec(
        "instruction/state",
        "uint8",
        _INSTRUCTION,
        0,
        "0 pending, 1 complete, 2 failed, 3 cancelled. 1 is the commit.",
    ),
    ArraySpec("instruction/error", "string", _INSTRUCTION, "", "Why the instruction failed, for state 2."),
)

TOKEN_ARRAYS = (
    ArraySpec("token/id", "int32", _TOKEN, -1, "Token id that the worker fed to the model; -1 was never written."),
    ArraySpec(
        "token/position",
        "int32",
        _TOKEN,
        -1,
        "0-based position in the sequence, from the worker; -1 never written.",
    ),
)

NEURON_ACTIVE = ArraySpec(
    "neuron/active",
    "uint8",
    ("token", "layer", "neuron_byte"),
    0,
    "Which neurons of the dense FFN layers are active. Bit-packed, little bit order: neuron i is bit i % 8 of byte "
    "i // 8. Trust only rows of instructions whose state is 1.",
    "bit mask",
)

NEURON_COUNT = ArraySpec(
    "neuron/count",
    "uint32",
    ("instruction", "layer", "neuron"),
    0,
    "At how many of the instruction's token_length rows each neuron of the dense FFN layers is active. Trust only "
    "instructions whose state is 1.",
    "token",
)


def array_specs(granularity: Granularity) -> tuple[ArraySpec, ...]:
    """Every array of an archive of that granularity whose model has dense FFN layers."""
    if granularity == "count":
        return (*INSTRUCTION_ARRAYS, NEURON_COUNT)
    return (*INSTRUCTION_ARRAYS, *TOKEN_ARRAYS, NEURON_ACTIVE)


INSTRUCTION_CHUNK = 8192  # numeric instruction arrays
STRING_CHUNK = 1024
MASK_KEY_SEPARATOR = "."  # chunk (2, 0, 0) of masks or counts is the file c.2.0.0
TOKEN_CHUNK = 65_536  # rows of token/id and token/position
