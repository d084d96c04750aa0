"""Says in a sentence what the figures of general and unique components and of LAPE show, from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.findings.ties import End, in_a_row, largest
from sparcom_analysis.schema.components import ComponentGroups, LapeGroup
from sparcom_analysis.tables.components import component_title


def components_sentence(group: ComponentGroups, model: str) -> str:
    """How many components all categories share and how many are one's alone, against shuffled names."""
    title = component_title(group.component)
    if group.general is None or group.shared is None or group.unique is None:
        return f"In {model}, general and unique {title} are not told apart: {group.reason}."
    unique = [numbers.total for numbers in group.unique]
    total = group.general.total + group.shared.total + sum(unique)
    if not total:
        return f"In {model}, no category has {title} that enough of its instructions share."
    general, alone = group.general.total, sum(unique)
    text = (
        f"In {model}, {total:,} {title} belong to a category: {general:,} ({general / total:.0%}) to all "
        f"{len(unique)}, {alone:,} ({alone / total:.0%}) to one alone"
    )
    if group.general_chance is not None and group.unique_chance is not None:
        text += (
            f"; with the categories' names shuffled it would be {group.general_chance:,.0f} and "
            f"{sum(group.unique_chance):,.0f}"
        )
    return f"{text}.{_most_unique(group, unique)}"


def _most_unique(group: ComponentGroups, unique: list[int]) -> str:
    """Which category has most of its own, and for which it is more than chance."""
    if not any(unique):
        return ""
    most = _most(group.categories, unique)
    text = (
        f" {most.names[0]} has the most of its own, {int(most.value):,}."
        if most.single
        else f" {most.named('categories')} have the most of their own, {int(most.value):,} each."
    )
    if group.unique_p is None:
        return text
    beyond = [name for name, p in zip(group.categories, group.unique_p, strict=True) if p <= 0.05]
    if len(beyond) == len(unique):
        return f"{text} Every category has more than chance gives (p ≤ 0.05, corrected)."
    names = in_a_row(beyond) if beyond else "No category"
    verb = "have" if len(beyond) > 1 else "has"
    return f"{text} {names} {verb} more than chance gives (p ≤ 0.05, corrected)."


def _most(categories: Sequence[str], numbers: Sequence[int]) -> End:
    return largest([(float(number), name) for number, name in zip(numbers, categories, strict=True)])


def lape_sentence(group: LapeGroup, model: str) -> str:
    """How many neurons LAPE selects, and how far they are the unique ones."""
    title = component_title(group.component)
    if group.reason:
        return f"In {model}, LAPE selects none of the {title}: {group.reason}."
    if not group.selected:
        why = "none passes the filter"
        if group.passed:
            passed = f"{group.passed:,} {'passes' if group.passed == 1 else 'pass'} the filter"
            why = f"{passed}, but the share of all neurons that LAPE takes comes to none"
        return f"In {model}, LAPE selects none of the {title}: {why}."
    some = title.replace("neurons", "neuron", 1) if group.selected == 1 else title
    text = f"In {model}, LAPE selects {group.selected:,} {some}; {_most_specific(group)}."
    if sum(group.total) > group.selected:
        text += " One that is specific to several categories is counted for each of them."
    known = [value for value in group.unique_overlap if value is not None]
    if known:
        text += (
            f" They overlap with the unique ones by {sum(known) / len(known):.2f} (Jaccard index, mean of categories)."
        )
    return text


def _most_specific(group: LapeGroup) -> str:
    """Which category has the most of LAPE's neurons."""
    most = _most(group.categories, group.total)
    if not most.value:
        return "none of them is specific to a category"
    if most.single:
        return f"{most.names[0]} has the most that are specific to it, {int(most.value):,}"
    return f"{most.named('categories')} have the most that are specific to one category, {int(most.value):,} each"
