"""Arrays of an archive: name, dtype, dimensions, fill value and description. Writer and checks share them.

Granularity and model decide which arrays an archive has. `token` archives have a token axis with masks on it; `count`
archives have sums over each instruction's rows instead. Dense FFN layers, routers, routed experts and shared experts
are components with arrays of their own; `captured_arrays` lists those of a model. Fill values distinguish unwritten
entries from data: token ids and positions are -1, experts 65535, weights NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sparcom_data.schema.metadata import Component, Granularity, ModelInfo

NO_EXPERT = 65_535  # fill value of router/expert


class State(IntEnum):
    """Values of `instruction/state`."""

    PENDING = 0
    COMPLETE = 1
    FAILED = 2
    CANCELLED = 3


class Origin(IntEnum):
    """Values of `token/origin`: where a token comes from. UNKNOWN if it could not be proved."""

    CONTENT = 0
    TEMPLATE = 1
    SPECIAL = 2
    RESPONSE = 3
    UNKNOWN = 255


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of the format. dtype `string` is Zarr's variable-length string."""

    name: str
    dtype: str
    dimensions: tuple[str, ...]
    fill_value: float | str
    description: str
    unit: str | None = None


_INSTRUCTION = ("instruction",)
_TOKEN = ("token",)

INSTRUCTION_ARRAYS = (
    ArraySpec("instruction/id", "string", _INSTRUCTION, "", "Unique name of the instruction."),
    ArraySpec("instruction/category", "string", _INSTRUCTION, "", "Category; empty if none was given."),
    ArraySpec("instruction/source", "string", _INSTRUCTION, "", "Origin of the instruction."),
    ArraySpec(
        "instruction/text",
        "string",
        _INSTRUCTION,
        "",
        "Exact text that was tokenized, after the prompt format was applied; empty if token ids were given.",
    ),
    ArraySpec("instruction/response", "string", _INSTRUCTION, "", "Generated text; empty if none was requested."),
    ArraySpec(
        "instruction/token_start",
        "int64",
        _INSTRUCTION,
        0,
        "First row of the instruction on the token axis; in archives of counts, the row that it would have.",
        "row",
    ),
    ArraySpec("instruction/prompt_length", "int32", _INSTRUCTION, 0, "T of the paper: prompt tokens.", "token"),
    ArraySpec(
        "instruction/token_length",
        "int32",
        _INSTRUCTION,
        0,
        "Number of rows with data from token_start on, or of rows counted; 0 until the instruction is complete.",
        "token",
    ),
    ArraySpec(
        "instruction/state",
        "uint8",
        _INSTRUCTION,
        0,
        "0 pending, 1 complete, 2 failed, 3 cancelled. State 1 commits the instruction.",
    ),
    ArraySpec("instruction/error", "string", _INSTRUCTION, "", "Reason of the failure, for state 2."),
)

TOKEN_ARRAYS = (
    ArraySpec("token/id", "int32", _TOKEN, -1, "Token id that the worker fed to the model; -1: never written."),
    ArraySpec(
        "token/position",
        "int32",
        _TOKEN,
        -1,
        "0-based position in the sequence, reported by the worker; -1: never written.",
    ),
)

TOKEN_ORIGIN = ArraySpec(
    "token/origin",
    "uint8",
    _TOKEN,
    int(Origin.UNKNOWN),
    "Origin of the token: 0 content of the instruction, 1 chat template, 2 special token outside of a template, "
    "3 response; 255 unknown.",
)
TEMPLATE_LENGTH = ArraySpec(
    "instruction/template_length",
    "int32",
    _INSTRUCTION,
    -1,
    "Prompt tokens that the chat template wrote (token/origin 1); -1 unknown.",
    "token",
)
SPECIAL_LENGTH = ArraySpec(
    "instruction/special_length",
    "int32",
    _INSTRUCTION,
    -1,
    "Special tokens of the prompt outside of the template (token/origin 2); -1 unknown.",
    "token",
)

_PACKED = "Bit-packed, little bit order: neuron i is bit i % 8 of byte i // 8. "
_TRUST_ROWS = "Trust only rows of instructions whose state is 1."
_TRUST_COUNTS = "Trust only instructions whose state is 1."

NEURON_ACTIVE = ArraySpec(
    "neuron/active",
    "uint8",
    ("token", "layer", "neuron_byte"),
    0,
    f"Active neurons of the dense FFN layers. {_PACKED}{_TRUST_ROWS}",
    "bit mask",
)
ROUTER_EXPERT = ArraySpec(
    "router/expert",
    "uint16",
    ("token", "moe_layer", "choice"),
    NO_EXPERT,
    f"Top-k experts in the order of the router, on CPU by descending weight; {NO_EXPERT}: no data. {_TRUST_ROWS}",
)
ROUTER_WEIGHT = ArraySpec(
    "router/weight",
    "float32",
    ("token", "moe_layer", "choice"),
    math.nan,
    f"Weights with which the model combines the top-k experts; NaN: no data. {_TRUST_ROWS}",
)
EXPERT_NEURON_ACTIVE = ArraySpec(
    "expert_neuron/active",
    "uint8",
    ("token", "moe_layer", "choice", "neuron_byte"),
    0,
    f"Active neurons of each top-k expert. {_PACKED}{_TRUST_ROWS}",
    "bit mask",
)
SHARED_EXPERT_NEURON_ACTIVE = ArraySpec(
    "shared_expert_neuron/active",
    "uint8",
    ("token", "moe_layer", "neuron_byte"),
    0,
    f"Active neurons of the shared experts. {_PACKED}{_TRUST_ROWS}",
    "bit mask",
)

NEURON_COUNT = ArraySpec(
    "neuron/count",
    "uint32",
    ("instruction", "layer", "neuron"),
    0,
    "Number of the instruction's token_length rows at which each neuron of the dense FFN layers is active. "
    f"{_TRUST_COUNTS}",
    "token",
)
ROUTER_COUNT = ArraySpec(
    "router/count",
    "uint32",
    ("instruction", "moe_layer", "expert"),
    0,
    f"Number of the instruction's token_length rows whose top-k experts include each expert. {_TRUST_COUNTS}",
    "token",
)
EXPERT_NEURON_COUNT = ArraySpec(
    "expert_neuron/count",
    "uint32",
    ("instruction", "moe_layer", "expert", "neuron"),
    0,
    "Number of the instruction's token_length rows at which each expert is in the top k and its neuron is active. "
    f"{_TRUST_COUNTS}",
    "token",
)
SHARED_EXPERT_NEURON_COUNT = ArraySpec(
    "shared_expert_neuron/count",
    "uint32",
    ("instruction", "moe_layer", "neuron"),
    0,
    f"Number of the instruction's token_length rows at which each neuron of the shared experts is active. "
    f"{_TRUST_COUNTS}",
    "token",
)


@dataclass(frozen=True, slots=True)
class CapturedArray:
    """An array that the worker writes: one row per token, or one row per instruction in archives of counts.

    row: shape of one row. neurons: number of neurons on the last axis, packed or not; 0 if that axis has none.
    """

    component: Component
    spec: ArraySpec
    row: tuple[int, ...]
    neurons: int = 0

    @property
    def name(self) -> str:
        """Path of the array within the archive."""
        return self.spec.name

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return math.prod(self.row) * np.dtype(self.spec.dtype).itemsize

    @property
    def packed(self) -> bool:
        """Whether the array holds bit masks."""
        return self.spec.dimensions[-1] == "neuron_byte"


def captured_arrays(model: ModelInfo, granularity: Granularity) -> tuple[CapturedArray, ...]:
    """Return the arrays that the worker writes for a model, in a fixed order."""
    return _count_arrays(model) if granularity == "count" else _token_arrays(model)


def _token_arrays(model: ModelInfo) -> tuple[CapturedArray, ...]:
    found = []
    if model.layer_ids:
        row = (len(model.layer_ids), mask_bytes(model.neurons))
        found.append(CapturedArray("neuron", NEURON_ACTIVE, row, model.neurons))
    if model.moe is not None:
        moe = model.moe
        topk = (len(moe.layer_ids), moe.experts_per_token)
        found.append(CapturedArray("router", ROUTER_EXPERT, topk))
        found.append(CapturedArray("router", ROUTER_WEIGHT, topk))
        experts = (*topk, mask_bytes(moe.neurons))
        found.append(CapturedArray("expert_neuron", EXPERT_NEURON_ACTIVE, experts, moe.neurons))
        if moe.shared_neurons:
            row = (len(moe.layer_ids), mask_bytes(moe.shared_neurons))
            shared = CapturedArray("shared_expert_neuron", SHARED_EXPERT_NEURON_ACTIVE, row, moe.shared_neurons)
            found.append(shared)
    return tuple(found)


def _count_arrays(model: ModelInfo) -> tuple[CapturedArray, ...]:
    found = []
    if model.layer_ids:
        row: tuple[int, ...] = (len(model.layer_ids), model.neurons)
        found.append(CapturedArray("neuron", NEURON_COUNT, row, model.neurons))
    if model.moe is not None:
        moe = model.moe
        experts = (len(moe.layer_ids), moe.experts)
        found.append(CapturedArray("router", ROUTER_COUNT, experts))
        found.append(CapturedArray("expert_neuron", EXPERT_NEURON_COUNT, (*experts, moe.neurons), moe.neurons))
        if moe.shared_neurons:
            row = (len(moe.layer_ids), moe.shared_neurons)
            found.append(CapturedArray("shared_expert_neuron", SHARED_EXPERT_NEURON_COUNT, row, moe.shared_neurons))
    return tuple(found)


def mask_bytes(neurons: int) -> int:
    """Return the number of bytes of a packed mask of `neurons` neurons."""
    return -(-neurons // 8)


def array_specs(model: ModelInfo, granularity: Granularity) -> tuple[ArraySpec, ...]:
    """Return all arrays that an archive of this model and granularity must have; see also `origin_specs`."""
    tokens = TOKEN_ARRAYS if granularity == "token" else ()
    return (*INSTRUCTION_ARRAYS, *tokens, *(item.spec for item in captured_arrays(model, granularity)))


def origin_specs(granularity: Granularity) -> tuple[ArraySpec, ...]:
    """Return the arrays of token origins. Archives of early releases lack all of them."""
    lengths = (TEMPLATE_LENGTH, SPECIAL_LENGTH)
    return (*lengths, TOKEN_ORIGIN) if granularity == "token" else lengths


INSTRUCTION_CHUNK = 8192  # numeric instruction arrays
STRING_CHUNK = 1024
MASK_KEY_SEPARATOR = "."  # chunk (2, 0, 0) of masks or counts is the file c.2.0.0
TOKEN_CHUNK = 65_536  # rows of token/id and token/position
