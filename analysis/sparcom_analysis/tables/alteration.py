"""Tables about a fine-tuned twin: tables 1, 2 and 6 of the paper, and the numbers behind figures 5 and 6.

From the parts of metrics.json alone. Rows over all instructions come last.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.alteration import IseAlteration, IsnAlteration, IsnVenn, TwinFacts
from sparcom_analysis.schema.experts import ExpertShifts
from sparcom_analysis.tables.experts import all_label
from sparcom_analysis.tables.formats import Cell, Table
from sparcom_analysis.tables.intervals import without_empty_ends

LAYERED = ("base", "base low", "base high", "tuned", "tuned low", "tuned high")
KEPT = "*"  # marks an expert that stays among the most chosen after tuning


def isn_alteration_table(part: IsnAlteration, base_name: str) -> Table:
    """Table 1: how far tuning alters the ISNs of each category, and how many there are in both models."""
    fields = ("instructions", "overlap", "alteration", "low", "high", "base_isn", "tuned_isn")
    return without_empty_ends(
        Table(
            "isn_alteration",
            f"Alteration of instruction-specific neurons ({TITLES[part.component]}) from {base_name} to "
            f"{part.twin.model_name}, equation 15",
            ["category", "instructions", "overlap", "alteration", "low", "high", "ISNs base", "ISNs tuned"],
            _category_rows(part, fields),
            _note(part.twin, part.overall.undefined, "neither model has an ISN"),
            ["", "", ".3f", ".3f", ".3f", ".3f", ".1f", ".1f"],
        )
    )


def _category_rows(part: IsnAlteration | IseAlteration, fields: Sequence[str]) -> list[list[Cell]]:
    """One row a category, and the last over all: its name, and these fields of the part."""
    names = [*part.categories, all_label(part.categories)]
    columns = [[*getattr(part, field), getattr(part.overall, field)] for field in fields]
    return [list(row) for row in zip(names, *columns, strict=True)]


def ise_alteration_table(part: IseAlteration, base_name: str) -> Table:
    """Table 2: how far tuning alters which experts each category uses."""
    fields = ("instructions", "correlation", "alteration", "low", "high")
    return without_empty_ends(
        Table(
            "ise_alteration",
            f"Alteration of expert use from {base_name} to {part.twin.model_name}, equation 16",
            ["category", "instructions", "correlation", "alteration", "low", "high"],
            _category_rows(part, fields),
            _note(part.twin, part.overall.undefined, "expert frequencies have no variance"),
            ["", "", ".4f", ".4f", ".4f", ".4f"],
        )
    )


def layer_alteration_table(part: IsnAlteration, base_name: str) -> Table:
    """One row a category and layer: the mean alteration there, and figure 5 of both models."""
    every = part.overall
    rows: list[list[Cell]] = [
        [name, layer, *values]
        for name, *lists in zip(
            [*part.categories, all_label(part.categories)],
            [*part.layer_alteration, every.layer_alteration],
            [*part.layer_low, every.layer_low],
            [*part.layer_high, every.layer_high],
            [*part.base_by_layer, every.base_by_layer],
            [*part.base_by_layer_low, every.base_by_layer_low],
            [*part.base_by_layer_high, every.base_by_layer_high],
            [*part.tuned_by_layer, every.tuned_by_layer],
            [*part.tuned_by_layer_low, every.tuned_by_layer_low],
            [*part.tuned_by_layer_high, every.tuned_by_layer_high],
            strict=True,
        )
        for layer, *values in zip(part.layer_ids, *lists, strict=True)
    ]
    return without_empty_ends(
        Table(
            "isn_alteration_by_layer",
            f"Alteration of instruction-specific neurons ({TITLES[part.component]}) by layer, from {base_name} to "
            f"{part.twin.model_name}",
            ["category", "layer", "alteration", "low", "high", *(f"ISNs {name}" for name in LAYERED)],
            rows,
            formats=["", "", ".3f", ".3f", ".3f", *[".1f"] * len(LAYERED)],
        )
    )


def venn_table(part: IsnVenn, base_name: str) -> Table:
    """Figure 6: one row an instruction and layer."""
    rows: list[list[Cell]] = [
        [shown.id, shown.category, *counts]
        for shown in part.instructions
        for counts in zip(part.layer_ids, shown.only_base, shown.both, shown.only_tuned, strict=True)
    ]
    return Table(
        "isn_venn",
        f"Instruction-specific neurons ({TITLES[part.component]}) of single instructions in {base_name} and "
        f"{part.tuned_name}",
        ["id", "category", "layer", "only base", "both", "only tuned"],
        rows,
        "Of each category the instruction whose alteration is nearest its median." if part.typical else "",
    )


def kept_experts_table(part: ExpertShifts, base_name: str) -> Table:
    """Table 6: the base model's most chosen experts by category and layer; those that stay after tuning are marked."""
    ranks = len(part.overall_top_base[0])
    groups = zip(
        [*part.categories, all_label(part.categories)],
        [*part.top_base, part.overall_top_base],
        [*part.top_kept, part.overall_top_kept],
        strict=True,
    )
    rows: list[list[Cell]] = [
        [name, layer, *(f"{expert}{KEPT if stays else ''}" for expert, stays in zip(experts, kept, strict=True))]
        for name, tops, marks in groups
        for layer, experts, kept in zip(part.layer_ids, tops, marks, strict=True)
    ]
    return Table(
        "top_experts_kept",
        f"The {ranks} experts of each layer that {base_name} chooses most",
        ["category", "layer", *(f"rank {rank}" for rank in range(1, ranks + 1))],
        rows,
        f"{KEPT} also among the {ranks} most chosen after tuning. Over the {part.matched} instructions of both models.",
    )


def _note(twin: TwinFacts, undefined: int, why: str) -> str:
    """How many instructions there are, and what is odd about them."""
    said = [f"Over the {twin.matched} instructions that are complete with both models."]
    if undefined:
        left = "has no value ({}) and is" if undefined == 1 else "have no value ({}) and are"
        said.append(f"{undefined} of them {left.format(why)} in no mean.")
    return " ".join([*said, *twin.notes])
