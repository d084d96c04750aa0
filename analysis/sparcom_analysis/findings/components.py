"""Says in a sentence what the figures of general and unique components and of LAPE show, from the numbers alone."""

from __future__ import annotations

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
    most = max(range(len(unique)), key=unique.__getitem__)
    text = f" {group.categories[most]} has the most of its own, {unique[most]:,}."
    if group.unique_p is None:
        return text
    beyond = [name for name, p in zip(group.categories, group.unique_p, strict=True) if p <= 0.05]
    if len(beyond) == len(unique):
        return f"{text} Every category has more than chance gives (p ≤ 0.05, corrected)."
    names = ", ".join(beyond) or "No category"
    verb = "have" if len(beyond) > 1 else "has"
    return f"{text} {names} {verb} more than chance gives (p ≤ 0.05, corrected)."


def lape_sentence(group: LapeGroup, model: str) -> str:
    """How many neurons LAPE selects, and how far they are the unique ones."""
    title = component_title(group.component)
    if group.reason:
        return f"In {model}, LAPE selects none of the {title}: {group.reason}."
    if not group.selected:
        counts = f"{group.passed:,} pass the filter, {group.wanted:,} are wanted"
        return f"In {model}, LAPE selects none of the {title}: {counts}."
    most = max(range(len(group.total)), key=group.total.__getitem__)
    text = (
        f"In {model}, LAPE selects {group.selected:,} {title}; {group.categories[most]} has the most that are specific "
        f"to it, {group.total[most]:,}."
    )
    if sum(group.total) > group.selected:
        text += " One that is specific to several categories is counted for each of them."
    known = [value for value in group.unique_overlap if value is not None]
    if known:
        text += (
            f" They overlap with the unique ones by {sum(known) / len(known):.2f} (Jaccard index, mean of categories)."
        )
    return text
