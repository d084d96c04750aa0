"""General and unique components and LAPE as tables: numbers come in ready."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.components import ComponentGroups, ComponentNumbers, GeneralUnique, LapeNeurons
from sparcom_analysis.tables.formats import Cell, Table

EXPERT_TITLE = "experts"


def component_title(component: str) -> str:
    """Which components, in words."""
    return EXPERT_TITLE if component == "expert" else f"neurons of {TITLES[component]}"


def share_of(share: float) -> str:
    """A share in per cent, as in a sentence."""
    return f"{100 * share:.6g} %"


def component_layer_table(group: ComponentGroups) -> Table:
    """One row a layer and one for all: components that are general, shared, and unique to each category."""
    columns = ["layer", "general", "shared", *(f"unique to {name}" for name in group.categories)]
    parts: list[ComponentNumbers | None] = [group.general, group.shared]
    parts += group.unique or [None] * len(group.categories)
    rows: list[list[Cell]] = [
        [layer, *(None if part is None else part.by_layer[place] for part in parts)]
        for place, layer in enumerate(group.layer_ids)
    ]
    rows.append(["all", *(None if part is None else part.total for part in parts)])
    note = f"Of {group.per_layer} in a layer. General: of all categories; shared: of several, but not of all."
    return Table(
        f"general_unique-{group.component}",
        f"General and unique {component_title(group.component)} by layer",
        columns,
        rows,
        group.reason or note,
    )


def component_share_table(part: GeneralUnique) -> Table:
    """One row a category and kind: how many components it has, the share that is general, and its unique ones."""
    columns = ["components", "category", "instructions", "number", "number_low", "number_high"]
    columns += [*_SHARES, "unique", "unique_low", "unique_high", *_CHANCE]
    rows = [_share_row(group, code) for group in part.groups for code in range(len(group.categories))]
    of = share_of(part.share)
    note = f"A component belongs to a category where at least {of} of the category's instructions have it."
    if part.shuffles:
        note += f" Chance: means over {part.shuffles} shuffles of the categories' names; p after Holm."
    formats = ["", "", "", "", ".0f", ".0f", ".1%", ".1%", ".1%", "", ".0f", ".0f", ".1f", ".3f"]
    return Table(
        "general_unique",
        "Components of each category, the share that is general, and unique ones",
        columns,
        rows,
        note,
        formats,
    )


_SHARES = ("general_share", "general_share_low", "general_share_high")
_CHANCE = ("unique_chance", "unique_p")


def _share_row(group: ComponentGroups, code: int) -> list[Cell]:
    own, unique = group.belonging[code], None if group.unique is None else group.unique[code]
    values: list[list[float | None] | list[float] | None] = [getattr(group, name) for name in (*_SHARES, *_CHANCE)]
    shares: list[Cell] = [None if value is None else value[code] for value in values]
    counted: list[Cell] = [None] * 3 if unique is None else [unique.total, unique.total_low, unique.total_high]
    named: list[Cell] = [component_title(group.component), group.categories[code], group.instructions[code]]
    return [*named, own.total, own.total_low, own.total_high, *shares[:3], *counted, *shares[3:]]


def lape_table(part: LapeNeurons) -> Table:
    """One row a category and component: LAPE's neurons, where they lie, and how far they are the unique ones."""
    rows: list[list[Cell]] = []
    for group in part.groups:
        for code, name in enumerate(group.categories):
            rows.append(
                [
                    component_title(group.component),
                    name,
                    group.tokens[code],
                    group.total[code],
                    _median_layer(group.layer_ids, group.by_layer[code]),
                    group.unique_overlap[code],
                ]
            )
    return Table(
        "lape",
        "Neurons specific to a category by activation probability entropy (LAPE)",
        ["components", "category", "tokens", "neurons", "median_layer", "unique_overlap"],
        rows,
        f"The {part.top_rate:.1%} of lowest entropy among neurons above the filter ({part.filter_rate:g} of all p); "
        f"specific where p is above the bar ({part.bar_rate:g}).",
    )


def _median_layer(layer_ids: Sequence[int], counts: Sequence[int]) -> int | None:
    """The layer that the lower half of the neurons reaches to; None where there is none."""
    reached, half = 0, sum(counts) / 2
    for layer, count in zip(layer_ids, counts, strict=True):
        reached += count
        if count and reached >= half:
            return layer
    return None
