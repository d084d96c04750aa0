"""The form of components.json: which components belong to which category, by id, for other programs.

`ComponentsFile.model_validate_json(text)` reads it back; `ComponentsFile.model_json_schema()` is its JSON Schema. An id
is a number within a layer; of a neuron of a routed expert it is a pair, expert and neuron within the expert. Layers are
numbered as the model numbers them, those without any component are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparcom_analysis.components.lape import Lape
from sparcom_analysis.isn import Selection
from sparcom_analysis.measures.general_unique.groups import Components, Kind
from sparcom_analysis.measures.general_unique.members import ComponentKind
from sparcom_analysis.schema.part import Part

LayerIds = dict[int, list[int] | list[tuple[int, int]]]


class SelectionRule(Part):
    """How the neurons of an instruction were selected, equation 7."""

    rows: Literal["prompt", "response", "all"] = Field(description="Whose tokens were counted.")
    epsilon: float | None = Field(description="Share of all neurons selected; null with the other rule.")
    threshold: float | None = Field(description="Least p of a selected neuron; null with the other rule.")
    share: float = Field(description="Share of a category's instructions from which a component is the category's.")
    top_experts: int = Field(description="Most chosen experts of a layer that are specific to an instruction.")


class ComponentIds(Part):
    """Components of one kind, by category and layer."""

    component: ComponentKind = Field(description="Whose neurons, or `expert`.")
    reason: str | None = Field(description="Why nothing is general or unique; null where categories can be compared.")
    belonging: dict[str, LayerIds] = Field(description="Of each category: those that belong to it.")
    unique: dict[str, LayerIds] = Field(description="Of each category: those that belong to it alone.")
    shared: LayerIds = Field(description="Those of two or more categories, but not of all.")
    general: LayerIds = Field(description="Those of all categories.")


class LapeIds(Part):
    """What LAPE selected among the neurons of one component."""

    component: Literal["neuron", "expert_neuron", "shared_expert_neuron"] = Field(description="Whose neurons.")
    reason: str | None = Field(description="Why nothing is selected; null where categories can be compared.")
    top_rate: float = Field(description="Share of all neurons that is selected.")
    filter_rate: float = Field(description="Percentile of all p that a neuron must pass in some category.")
    bar_rate: float = Field(description="Percentile of all p above which a neuron is specific to a category.")
    specific: dict[str, LayerIds] = Field(description="Of each category: neurons specific to it.")


class ComponentsFile(Part):
    """components.json."""

    schema_version: Literal[1] = Field(default=1, description="Version of this form.")
    model: str = Field(description="Model id: its name on a hub, or its folder.")
    archive: str = Field(description="Last part of the archive's path.")
    selection: SelectionRule = Field(description="How components were selected.")
    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    components: list[ComponentIds] = Field(description="General and unique components of each kind.")
    lape: list[LapeIds] = Field(description="LAPE of each component that has neurons; empty where it was not computed.")

    def to_json(self) -> bytes:
        """The file, on one line."""
        return f"{self.model_dump_json()}\n".encode()


def json_schema() -> bytes:
    """The JSON Schema of components.json."""
    return f"{json.dumps(ComponentsFile.model_json_schema(), indent=2, ensure_ascii=False)}\n".encode()


def selection_rule(selection: Selection, rows: str, share: float, top_experts: int) -> SelectionRule:
    """The part of the file that says how components were selected."""
    return SelectionRule.model_validate(
        {
            "rows": rows,
            "epsilon": selection.epsilon,
            "threshold": selection.threshold,
            "share": share,
            "top_experts": top_experts,
        }
    )


def component_ids(found: Components) -> ComponentIds:
    """The ids of one kind of component."""

    def ids(kind: Kind, category: int = 0) -> LayerIds:
        return _by_layer(found.layer_ids, found.ids(kind, category), found.width if found.routed else 0)

    return ComponentIds.model_validate(
        {
            "component": found.component,
            "reason": found.reason or None,
            "belonging": {name: ids("belonging", code) for code, name in enumerate(found.categories)},
            "unique": {name: ids("unique", code) for code, name in enumerate(found.categories)},
            "shared": ids("shared"),
            "general": ids("general"),
        }
    )


def lape_ids(found: Lape) -> LapeIds:
    """The ids that LAPE selected."""
    part = found.population
    width = part.neurons if part.routed else 0
    return LapeIds(
        component=part.component,
        reason=found.reason or None,
        top_rate=found.rates.top,
        filter_rate=found.rates.filter,
        bar_rate=found.rates.bar,
        specific={
            name: _by_layer(part.layer_ids, found.ids(code), width) for code, name in enumerate(found.categories)
        },
    )


def _by_layer(layer_ids: Sequence[int], ids: Sequence[NDArray[np.int64]], width: int) -> LayerIds:
    """Ids of each layer that has some; pairs of expert and neuron where experts are `width` neurons wide, not 0."""
    found: LayerIds = {}
    for layer, some in zip(layer_ids, ids, strict=True):
        if len(some):
            expert, neuron = np.divmod(some, width) if width else (some, some)
            found[layer] = list(zip(expert.tolist(), neuron.tolist(), strict=True)) if width else some.tolist()
    return found
