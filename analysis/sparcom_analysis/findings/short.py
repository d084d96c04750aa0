"""The answers in a few short sentences, for the top of the report. From metrics.json alone."""

from __future__ import annotations

from sparcom_analysis.findings.ties import in_a_row, largest, most_alike
from sparcom_analysis.schema.chance import MatrixTests
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.tables.chance import LEVEL
from sparcom_analysis.tables.components import component_title


def in_short(metrics: Metrics) -> list[str]:
    """A sentence a question, those without an answer left out."""
    found = [_alike(metrics), _closest(metrics), _length(metrics), _general(metrics), _neurons(metrics)]
    return [sentence for sentence in [*found, _experts(metrics)] if sentence]


def _alike(metrics: Metrics) -> str:
    """Whether categories differ at all."""
    part = metrics.tests
    one = part.matrices[0] if part is not None and part.matrices else None
    if one is None or one.within is None or one.between is None or one.p is None:
        return ""
    text = (
        f"Two instructions of the same category share {one.within:.3f} of their {_whose(metrics)}, two of different "
        f"categories {one.between:.3f} (Jaccard index, mean over all pairs of instructions): "
    )
    if one.p <= LEVEL:
        return f"{text}more than chance makes of it (p = {one.p:.4f})."
    return f"{text}no more than chance could make of it (p = {one.p:.4f}){_yet_some(one)}."


def _yet_some(one: MatrixTests) -> str:
    """Which categories differ from shuffled names by themselves although all together do not."""
    tested = zip(one.categories, one.category_p_adjusted, strict=True)
    found = [name for name, p in tested if p is not None and p <= LEVEL]
    if not found:
        return ""
    return f", but those of {in_a_row(found)} share more than shuffled names give (p ≤ {LEVEL}, corrected)"


def _closest(metrics: Metrics) -> str:
    """How many diagonal cells are the largest of their rows, and which two categories are nearest."""
    part = metrics.isn_similarity_without_self
    rows = [(at, row) for at, row in enumerate(part.matrix) if row[at] is not None and len(row) > 1]
    if len(rows) < 2:
        return ""
    most = sum(all(v is None or v < (row[at] or 0) for k, v in enumerate(row) if k != at) for at, row in rows)
    pairs = [(v, i, j) for i, row in enumerate(part.matrix) for j, v in enumerate(row) if i < j and v is not None]
    alike = largest([(v, f"{part.categories[i]} and {part.categories[j]}") for v, i, j in pairs])
    return (
        f"{most} of {len(rows)} categories resemble themselves more than any other (no instruction compared with "
        f"itself); {most_alike(alike)}."
    )


def _length(metrics: Metrics) -> str:
    """Whether that changes where every instruction has the same number of tokens."""
    part = metrics.length_matched
    if part is None or not part.components:
        return ""
    one = part.components[0].isn_similarity_without_self
    if one.rank_correlation is None:
        return ""
    return (
        f"With {part.tokens} tokens of each instruction the pairs of categories have a rank correlation of "
        f"{one.rank_correlation:.2f} with their order over all tokens, and {one.diagonal_largest} of "
        f"{one.compared_rows} categories resemble themselves most (no instruction compared with itself)."
    )


def _general(metrics: Metrics) -> str:
    """How much categories share."""
    part = metrics.general_unique
    group = None if part is None else part.groups[0]
    if group is None or group.general is None or group.shared is None or group.unique is None:
        return ""
    unique = sum(one.total for one in group.unique)
    total = group.general.total + group.shared.total + unique
    if not total:
        return ""
    chance = ""
    if group.general_chance is not None and group.unique_chance is not None:
        shuffled = f"{group.general_chance:,.0f} and {sum(group.unique_chance):,.0f}"
        chance = f"; with the categories’ names shuffled it would be {shuffled}"
    general = group.general.total
    return (
        f"Of {total:,} {component_title(group.component)} that belong to a category, {general:,} "
        f"({general / total:.0%}) belong to all of them and {unique:,} ({unique / total:.0%}) to one alone{chance}."
    )


def _neurons(metrics: Metrics) -> str:
    """What tuning alters among neurons."""
    part = metrics.isn_alteration
    if part is None or part.overall.alteration is None:
        return ""
    every = part.overall
    ends = "" if every.low is None or every.high is None else f" (interval {every.low:.3f} to {every.high:.3f})"
    by = f"{every.alteration:.3f}{ends}, where 0 is not at all and 1 all"
    return f"Tuning alters an instruction’s {_whose(metrics)} by {by}."


def _whose(metrics: Metrics) -> str:
    """What its neurons are called: with the component where a model has several."""
    return "neurons" if metrics.component is None else component_title(metrics.component)


def _experts(metrics: Metrics) -> str:
    """What tuning alters among experts."""
    part = metrics.ise_alteration
    if part is None or part.overall.alteration is None:
        return ""
    return f"It alters which experts an instruction uses by {part.overall.alteration:.4f}, where 0 is not at all."
