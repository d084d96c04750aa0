"""Neuron populations of an archive: dense layers, routed experts, shared experts.

Each population is ranked separately. Its axes are (layer, expert, neuron); without a router there is one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.schema import mask_bytes

PopulationName = Literal["neuron", "expert_neuron", "shared_expert_neuron"]

TITLES: dict[str, str] = {
    "neuron": "dense layers",
    "expert_neuron": "routed experts",
    "shared_expert_neuron": "shared experts",
}


@dataclass(frozen=True, slots=True)
class Population:
    """One population of neurons.

    Attributes:
        name: array group in the archive.
        layer_ids: layer numbers of the model.
        experts, top_k: experts per layer, and masks per token and layer; 1 without a router.
        neurons: neurons per expert, or per layer without a router.
    """

    name: PopulationName
    layer_ids: Sequence[int]
    experts: int
    top_k: int
    neurons: int

    @property
    def title(self) -> str:
        """Location of the neurons in words, e.g. "routed experts"."""
        return TITLES[self.name]

    @property
    def layers(self) -> int:
        """Length of the layer axis."""
        return len(self.layer_ids)

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one packed mask, which covers one expert, or one layer without a router."""
        return mask_bytes(self.neurons)

    @property
    def columns(self) -> int:
        """Entries per layer in counts, (expert, 8 × neuron_byte) flattened; padding entries are 0."""
        return self.experts * self.neuron_bytes * 8

    @property
    def width(self) -> int:
        """Neurons per layer, over all its experts."""
        return self.experts * self.neurons

    @property
    def total(self) -> int:
        """N of equations 7 and 9: neurons in all layers."""
        return self.layers * self.width

    @property
    def routed(self) -> bool:
        """Whether the router decides to which expert a mask belongs."""
        return self.name == "expert_neuron"

    def array(self, archive: Archive) -> str:
        """Return the name of the array with this population's masks or counts."""
        return f"{self.name}/{'count' if archive.granularity == 'count' else 'active'}"


def populations(archive: Archive) -> list[Population]:
    """Return the archive's populations: routed experts if there are any, dense layers, shared experts."""
    model, held = archive.attributes.model, archive.attributes.capture.components
    found: list[Population] = []
    if (moe := model.moe) is not None:
        found.append(Population("expert_neuron", moe.layer_ids, moe.experts, moe.experts_per_token, moe.neurons))
        if moe.shared_neurons:
            found.append(Population("shared_expert_neuron", moe.layer_ids, 1, 1, moe.shared_neurons))
    if model.layer_ids:
        found.insert(1, Population("neuron", model.layer_ids, 1, 1, model.neurons))
    return [item for item in found if item.name in held]


def choose_population(archive: Archive, name: PopulationName | None = None) -> Population:
    """Return the population with this name (default: the first) after checking its array; the archive must hold it."""
    if name is not None and name not in TITLES:
        raise InvalidInputError(f"population must be one of {', '.join(TITLES)}; it is {name!r}")
    held = ", ".join(archive.attributes.capture.components) or "nothing"
    if not (found := populations(archive)):
        raise UnsupportedArchiveError(
            f"the analysis needs neurons of feed-forward layers or of experts; {archive.path} holds {held}. "
            "Extract again with a model whose neurons are captured"
        )
    chosen = [item for item in found if name is None or item.name == name]
    if not chosen:
        raise UnsupportedArchiveError(
            f"population {name!r} needs an archive that holds it; {archive.path} holds {held}. "
            f"Choose {' or '.join(repr(item.name) for item in found)}"
        )
    check_array(archive, chosen[0].array(archive))
    return chosen[0]


def check_array(archive: Archive, name: str) -> None:
    """Raise DamagedArchiveError if a captured array does not have the shape that the attributes imply."""
    row = next(item.row for item in archive.captured if item.name == name)
    shape = archive.array(name).shape
    rows = len(archive.instructions) if archive.granularity == "count" else shape[0]
    if shape != (rows, *row):
        raise DamagedArchiveError(
            f"{name} must have shape {(rows, *row)} by the attributes and the instruction table of {archive.path}; it "
            f"has {shape}. Extract the archive again"
        )
