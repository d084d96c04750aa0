"""Says in a sentence what each figure and table about a tuned twin shows, from the parts of metrics.json alone.

Statements of what was measured; nothing here tests significance.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.findings.ties import all_tie, largest, smallest
from sparcom_analysis.schema.alteration import IseAlteration, IsnAlteration, IsnVenn, TwinFacts
from sparcom_analysis.schema.intervals import Values


def isn_alteration_sentence(part: IsnAlteration, base_name: str) -> str:
    """What table 1 shows: how much of the ISNs stays, and which categories tuning alters most and least."""
    every = part.overall
    if every.overlap is None or every.alteration is None:
        return f"No instruction has an ISN in {base_name} or {part.twin.model_name} with these settings."
    text = (
        f"From {base_name} to {part.twin.model_name}, the ISN sets of an instruction overlap by {every.overlap:.3f} "
        f"(Jaccard index, mean over {every.instructions:,} instructions): an alteration of {every.alteration:.3f}"
        f"{_interval(every.low, every.high)}.{_ends(part.categories, part.alteration)} An instruction has "
        f"{every.base_isn:,.1f} ISNs in the base model and {every.tuned_isn:,.1f} in the tuned one."
    )
    if every.undefined:
        text += f" {every.undefined:,} instructions have no ISN in either; they are in no mean."
    return text


def layer_alteration_sentence(part: IsnAlteration) -> str:
    """What the curves by layer show: where tuning alters most and least."""
    known = list(zip(part.overall.layer_alteration, part.layer_ids, strict=True))
    found = [(value, str(layer)) for value, layer in known if value is not None]
    if not found:
        return "No layer holds an ISN of either model with these settings."
    high, low = largest(found), smallest(found)
    text = (
        f"Tuning alters the ISNs most in {high.layers} ({high.value:.3f}) and least in {low.layers} ({low.value:.3f})"
    )
    if len(found) == 1:
        text = f"Tuning alters the ISNs of layer {found[0][1]} by {high.value:.3f}"
    elif all_tie(found):
        text = f"Tuning alters the ISNs equally in every layer that has any ({high.value:.3f})"
    none = len(known) - len(found)
    empty = f" {none} {'layer holds' if none == 1 else 'layers hold'} no ISN." if none else ""
    return f"{text}, mean over instructions.{empty}"


def layer_pair_sentence(part: IsnAlteration) -> str:
    """What figure 5 of both models shows: in which layer tuning changes the number of ISNs most."""
    counts = list(zip(part.overall.base_by_layer, part.overall.tuned_by_layer, strict=True))
    sizes = [abs(after - before) for before, after in counts]
    changes = largest([(size, str(layer)) for size, layer in zip(sizes, part.layer_ids, strict=True)])
    if not changes.single and changes.value:
        every = len(changes.names) == len(counts)
        where = "in every layer" if every else f"most in {changes.layers}, each"
        return f"The number of ISNs changes {where} by {changes.value:,.1f} of an instruction, mean over instructions."
    widest = [str(layer) for layer in part.layer_ids].index(changes.names[0])
    before, after = counts[widest]
    if before == after:
        return "An instruction has as many ISNs in each layer after tuning as before, mean over instructions."
    how = "changes most" if len(counts) > 1 else "changes"
    return (
        f"The number of ISNs {how} in layer {part.layer_ids[widest]}: {before:,.1f} of an instruction before "
        f"tuning, {after:,.1f} after, mean over instructions."
    )


def venn_sentence(part: IsnVenn) -> str:
    """What figure 6 shows: how many of the ISNs of the shown instructions are those of both models."""
    shown = [one for one in part.instructions if one.alteration is not None]
    if not shown:
        return "No instruction has an ISN in either model with these settings."
    totals = [sum(sum(getattr(one, name)) for one in shown) for name in ("only_base", "both", "only_tuned")]
    every = sum(totals)
    what = "one typical instruction of each category" if part.typical else "the instructions shown"
    return (
        f"Of the ISNs of {what}, {totals[1] / every:.1%} are ISNs of both models, {totals[0] / every:.1%} of the base "
        f"model alone, {totals[2] / every:.1%} of the tuned one alone."
    )


def ise_alteration_sentence(part: IseAlteration, base_name: str) -> str:
    """What table 2 shows: how far tuning alters which experts are used."""
    every = part.overall
    if every.correlation is None or every.alteration is None:
        return "Expert frequencies have no variance in one of the models; no correlation is defined."
    text = (
        f"The expert frequencies of an instruction in {base_name} and in {part.twin.model_name} correlate by "
        f"{every.correlation:.4f} (Pearson, mean over {every.instructions:,} instructions): an alteration of "
        f"{every.alteration:.4f}{_interval(every.low, every.high, 4)}.{_ends(part.categories, part.alteration, 4)}"
    )
    if every.undefined:
        text += f" For {every.undefined:,} instructions no correlation is defined; they are in no mean."
    return text


def tokens_sentence(twin: TwinFacts) -> str:
    """Whether both models read the same; empty where they did, or begins with a space."""
    if twin.different_tokens:
        return (
            f" {twin.different_tokens:,} of the {twin.matched:,} instructions did not become the same tokens in both "
            "models: part of what differs is the text."
        )
    if twin.different_tokens is None and twin.different_rows:
        return (
            f" {twin.different_rows:,} of the {twin.matched:,} instructions have another number of tokens in the tuned "
            "archive: part of what differs is the text."
        )
    return ""


def _interval(low: float | None, high: float | None, digits: int = 3) -> str:
    return "" if low is None or high is None else f" (interval {low:.{digits}f} to {high:.{digits}f})"


def _ends(categories: Sequence[str], values: Values, digits: int = 3) -> str:
    """The most and the least altered category; empty with fewer than two, or where none differs."""
    known = [(value, name) for value, name in zip(values, categories, strict=True) if value is not None]
    if len(known) < 2 or all_tie(known):
        return ""
    low, high = smallest(known), largest(known)
    most = f"Most altered {'is' if high.single else 'are'} {high.named('categories')} ({high.value:.{digits}f})"
    return f" {most}, least {low.named('categories')} ({low.value:.{digits}f})."
