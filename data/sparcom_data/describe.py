"""Text descriptions of archives: their repr, and the number of instructions per state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from sparcom_data.schema import State
from sparcom_data.schema.metadata import ArchiveAttributes

ReadState = Callable[[], NDArray[np.uint8]]
"""Returns `instruction/state`; may raise."""


def described(path: str, attributes: ArchiveAttributes, read_state: ReadState) -> str:
    """Return the repr of an archive. Reads only what `read_state` reads, and never raises."""
    return f"<Archive {archive_name(path)}: {', '.join(_facts(attributes, read_state))}>"


def described_html(path: str, attributes: ArchiveAttributes, read_state: ReadState) -> str:
    """Return the HTML repr of an archive for notebooks; otherwise as `described`."""
    items = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(attributes, read_state))
    return f"<b>Archive {escape(path)}</b><ul style='margin:0'>{items}</ul>"


def archive_name(path: str) -> str:
    """Return the name of the archive's folder, or its name on the server."""
    if "://" not in path:
        return Path(path).absolute().name
    return PurePath(path.removesuffix("/").removesuffix("/zarr")).name


def _facts(attributes: ArchiveAttributes, read_state: ReadState) -> Iterator[str]:
    """Yield phrases on the model, the instructions and the captured arrays."""
    model, capture = attributes.model, attributes.capture
    yield model.id.rstrip("/").rpartition("/")[2]
    try:
        state = read_state()
        yield f"{int((state == State.COMPLETE).sum()):,}/{len(state):,} instructions complete"
    except Exception:  # noqa: BLE001  (a damaged, removed or unreachable archive still has a name)
        yield "instructions unreadable"
    if "neuron" in capture.components:
        yield f"{_count(len(model.layer_ids), 'layer')} × {model.neurons:,} neurons"
    if (moe := model.moe) is not None:
        layers = _count(len(moe.layer_ids), "MoE layer")
        if "expert_neuron" in capture.components:
            yield f"{layers} × {moe.experts} experts × {moe.neurons:,} neurons (top {moe.experts_per_token})"
        if "shared_expert_neuron" in capture.components:
            yield f"{layers} × {moe.shared_neurons:,} neurons of shared experts"
        if "router" in capture.components:
            yield "top-k experts"
    what = "masks" if capture.granularity == "token" else "counts"
    yield f"{what} of {'prompt and response' if capture.positions == 'all' else capture.positions} tokens"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_states(state: Sequence[int] | NDArray[np.uint8]) -> dict[str, int]:
    """Return the number of instructions per state, keyed by the state's name in lower case."""
    counts = np.bincount(np.asarray(state, dtype=np.int64), minlength=len(State))
    return {item.name.lower(): int(counts[item]) for item in State}
