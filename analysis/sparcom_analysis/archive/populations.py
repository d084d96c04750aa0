"""Which neurons an analysis is about: the populations of an archive, one a component that has neurons.

A population is ranked by itself: equation 7 over dense layers' neurons, equation 9 over those of routed experts, and
the same over those of shared experts. Its neurons lie on the axes (layer, expert, neuron); where there are no experts
to choose from, the expert axis has length 1. Knows the attributes of an archive; reads no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError

PopulationName = Literal["neuron", "expert_neuron", "shared_expert_neuron"]

TITLES: dict[str, str] = {
    "neuron": "dense layers",
    "expert_neuron": "routed experts",
    "shared_expert_neuron": "shared experts",
}


@dataclass(frozen=True, slots=True)
class Population:
    """The neurons of one component.

    name: of the component in the archive. layer_ids: the model's number of each of its layers. experts: experts of a
    layer, 1 where there is no router. top_k: experts whose masks a token has, 1 likewise. neurons: of one layer, or of
    one expert of it.
    """

    name: PopulationName
    layer_ids: Sequence[int]
    experts: int
    top_k: int
    neurons: int

    @property
    def title(self) -> str:
        """Where its neurons are, in words."""
        return TITLES[self.name]

    @property
    def layers(self) -> int:
        """Length of the layer axis."""
        return len(self.layer_ids)

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one packed mask: of a layer, or of one expert of it."""
        return -(-self.neurons // 8)

    @property
    def columns(self) -> int:
        """Entries a layer has in counts, (expert, 8 × neuron_byte) flattened: spare ones included, those stay 0."""
        return self.experts * self.neuron_bytes * 8

    @property
    def width(self) -> int:
        """Neurons of one layer, over all its experts."""
        return self.experts * self.neurons

    @property
    def total(self) -> int:
        """N of equations 7 and 9: neurons of all layers."""
        return self.layers * self.width

    @property
    def routed(self) -> bool:
        """Whether which mask belongs to which expert is for the router to say."""
        return self.name == "expert_neuron"

    def array(self, granularity: str) -> tuple[str, tuple[int, ...]]:
        """Name of the archive's array, and the shape of one of its rows."""
        if granularity == "count":
            inner = (self.experts, self.neurons) if self.routed else (self.neurons,)
            return f"{self.name}/count", (self.layers, *inner)
        inner = (self.top_k, self.neuron_bytes) if self.routed else (self.neuron_bytes,)
        return f"{self.name}/active", (self.layers, *inner)


def populations(archive: Archive) -> list[Population]:
    """Every population that the archive holds, the one that an analysis is about first: the routed experts' neurons
    of a mixture of experts, the dense layers' otherwise."""
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
    """The population of that component, or the one that an analysis is about; its array was looked at.

    Raises:
        InvalidInputError: there is no component of that name with neurons.
        UnsupportedArchiveError: the archive holds no neurons, or not those.
        DamagedArchiveError: the attributes and the array disagree.
    """
    if name is not None and name not in TITLES:
        raise InvalidInputError(f"a population of neurons is one of {', '.join(TITLES)}; {name!r} is none")
    held = ", ".join(archive.attributes.capture.components) or "nothing"
    found = populations(archive)
    if not found:
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
    check_array(archive, *chosen[0].array(archive.granularity))
    return chosen[0]


def check_array(archive: Archive, name: str, row: tuple[int, ...]) -> None:
    """Refuse an array whose rows are not of this shape, or one of counts that lacks instructions.

    Raises:
        DamagedArchiveError: saying which shape it must have and which it has.
    """
    axis = "instruction" if archive.granularity == "count" else "token"
    shape = archive.array(name).shape
    if shape[1:] != row:
        raise DamagedArchiveError(
            f"{name} must be ({axis}, {', '.join(map(str, row))}) for what the attributes of {archive.path} say of the "
            f"model; it is ({axis}, {', '.join(map(str, shape[1:]))}). Extract the archive again"
        )
    if archive.granularity == "count" and len(archive.instructions) != shape[0]:
        raise DamagedArchiveError(
            f"{name} must have one entry for each of the {len(archive.instructions)} instructions of "
            f"{archive.path}; it has {shape[0]}. Extract the archive again"
        )
