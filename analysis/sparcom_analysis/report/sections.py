"""Puts figures, sentences and tables into the order of the report. Every figure and every table has its place here.

Each section is about one question; where a model has several components, each has a heading in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparcom_analysis.findings import alteration as altered
from sparcom_analysis.findings import experts as findings_experts
from sparcom_analysis.findings import neurons as findings
from sparcom_analysis.findings.components import components_sentence, lape_sentence
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.report.blocks import Block, Section, figure, heading, note, table, text
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.summary.length import length_sentence, size_sentence
from sparcom_analysis.tables.chance import chance_sentence
from sparcom_analysis.tables.components import component_title, share_of
from sparcom_analysis.tables.every import ending_of
from sparcom_analysis.tables.formats import Table

Tables = Mapping[str, Table]


def sections(metrics: Metrics, views: Mapping[str, Metrics], tables: Tables) -> list[Section]:
    """The sections that hold results, those without any left out."""
    made = [
        Section("similarity", "Similarity of categories", list(_similarity(metrics, views, tables))),
        Section("routing", "Similarity of categories in their experts", list(_correlation(metrics, tables))),
        Section("length", "What length explains", list(_length(metrics, tables))),
        Section("layers", "Neurons by layer", list(_layers(views, tables))),
        Section("general", "General and unique components", list(_general(metrics, tables))),
        Section("lape", "A second way of selecting: LAPE", list(_lape(metrics, tables))),
        Section("experts", "Which experts are chosen", list(_experts(metrics, tables))),
        Section("tuning", "What tuning alters", list(_neurons_altered(views, tables))),
        Section("routes", "What tuning shifts among the experts", list(_experts_altered(metrics, tables))),
    ]
    return [one for one in made if one.blocks]


def instruction_tables(views: Mapping[str, Metrics], tables: Tables) -> list[Block]:
    """Every instruction, of each component."""
    return [table(tables[f"instructions{ending}"], f"Every instruction{_of(view)}") for ending, view in views.items()]


def _of(view: Metrics) -> str:
    return "" if view.component is None else f", neurons of {TITLES[view.component]}"


def _part(view: Metrics) -> list[Block]:
    """The heading of a component where there may be several."""
    return [] if view.component is None else [heading(f"neurons of {TITLES[view.component]}")]


def _skipped(metrics: Metrics, *fields: str) -> list[Block]:
    """Why parts were not computed, each reason once."""
    reasons = dict.fromkeys(one.reason for one in metrics.not_computed if one.field in fields)
    return [note(reason) for reason in reasons]


def _tested(metrics: Metrics, component: str | None) -> list[Block]:
    """What shuffled names say of one matrix."""
    part = metrics.tests
    if part is None:
        return []
    return [block for one in part.matrices if one.component == component for block in text(chance_sentence(part, one))]


def _held(tables: Tables, *names: str) -> list[Block]:
    return [table(tables[name]) for name in names if name in tables]


def _similarity(metrics: Metrics, views: Mapping[str, Metrics], tables: Tables) -> Iterator[Block]:
    yield from _skipped(metrics, "intervals", "tests")
    for ending, view in views.items():
        yield from _part(view)
        look = "Heat map of the similarity of categories"
        yield figure(f"isn_similarity{ending}", look, findings.similarity_sentence(view))
        yield from _tested(metrics, view.component or "neuron")
        yield table(tables[f"isn_similarity{ending}"], f"Equation 10{_of(view)}: pairs with itself counted")
        without = f"Equation 10{_of(view)}: pairs with itself left out"
        yield table(tables[f"isn_similarity_without_self{ending}"], without)
        yield from _held(tables, f"isn_similarity_intervals{ending}", f"isn_tests{ending}", f"isn_pair_tests{ending}")


def _correlation(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    if metrics.ise_correlation is None:
        return
    sentence = findings_experts.correlation_sentence(metrics)
    yield figure("ise_correlation", "Heat map of the correlation of categories", sentence)
    yield from _tested(metrics, None)
    yield table(tables["ise_correlation"], "Equation 14: pairs with itself counted")
    yield table(tables["ise_correlation_without_self"], "Equation 14: pairs with itself left out")
    yield from _held(tables, "ise_correlation_intervals", "ise_tests", "ise_pair_tests")


def _length(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    yield from _skipped(metrics, "length_matched")
    part = metrics.length_matched
    if part is None:
        return
    yield from text(
        f"Each instruction is represented by {part.tokens} of its tokens, drawn at random, so that length can make no "
        f"difference. On the left are all tokens of the same {part.used:,} instructions. "
        f"{findings.length_sentence(metrics)}"
    )
    for one in part.components:
        ending, title = ending_of(metrics, one.component), f"neurons of {TITLES[one.component]}"
        if metrics.component is not None:
            yield heading(title)
        shown = one.isn_similarity_without_self if metrics.settings.exclude_self_pairs else one.isn_similarity
        alone = one.isn_similarity_without_self
        sentence = length_sentence(part, shown, alone, f"the similarity of {title}")
        yield figure(f"length_matched{ending}", "Two heat maps, with all tokens and with T matched", sentence)
        look = "Set size against number of tokens, a point an instruction, with all tokens and with T matched"
        yield figure(f"set_size_by_length{ending}", look, size_sentence(part, one))
        yield from _held(tables, f"length_matched{ending}", f"length_matched_without_self{ending}")
    routed = part.ise_correlation_without_self if metrics.settings.exclude_self_pairs else part.ise_correlation
    alone_routed = part.ise_correlation_without_self
    if routed is not None and alone_routed is not None:
        yield heading("experts")
        sentence = length_sentence(part, routed, alone_routed, "the correlation of expert frequencies")
        yield figure("length_matched-ise", "Two heat maps, with all tokens and with T matched", sentence)
        yield from _held(tables, "length_matched-ise", "length_matched_without_self-ise")


def _layers(views: Mapping[str, Metrics], tables: Tables) -> Iterator[Block]:
    for ending, view in views.items():
        yield from _part(view)
        look = "Chart of instruction-specific neurons by layer and category"
        yield figure(f"isn_by_layer{ending}", look, findings.layer_sentence(view))
        if view.component is not None:
            yield from text(findings.size_sentence(view))
        yield from _held(tables, f"isn_by_layer{ending}", f"isn_by_layer_intervals{ending}")


def _general(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    part = metrics.general_unique
    if part is None:
        return
    yield from text(
        f"A component belongs to a category where at least {share_of(part.share)} of the category’s instructions have "
        "it. General ones belong to all categories, unique ones to one alone. A threshold makes some of both by "
        "chance: shuffling the categories’ names says how many."
    )
    if any(group.component == "expert" for group in part.groups):
        yield from text(
            f"An instruction has the experts that are among the {part.top_experts} most chosen of their layer over its "
            f"tokens, all that tie with the last of these {part.top_experts} included, and none that is never chosen. "
            f"Table 6 differs: of tied experts it takes the one with the lower id."
        )
    for group in part.groups:
        if len(part.groups) > 1:
            yield heading(component_title(group.component))
        sentence = components_sentence(group, metrics.archive.model_name)
        yield figure(f"general_unique-{group.component}", "Bars of components by layer", sentence)
        yield from _held(tables, f"general_unique-{group.component}")
    yield from _held(tables, "general_unique")


def _lape(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    yield from _skipped(metrics, "lape")
    part = metrics.lape
    for group in [] if part is None else part.groups:
        if metrics.component is not None:
            yield heading(f"neurons of {TITLES[group.component]}")
        sentence = lape_sentence(group, metrics.archive.model_name)
        yield figure(f"lape-{group.component}", "Bars of neurons by layer and category", sentence)
    yield from _held(tables, "lape")


def _experts(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    top = metrics.top_experts
    if top is None:
        return
    yield figure("expert_frequency", "Maps of expert by layer", findings_experts.frequency_sentence(metrics))
    look = "Chart of the share of choices that the most chosen experts take"
    yield figure("top_expert_share", look, findings_experts.share_sentence(metrics))
    count = len(top.overall_expert[0])
    yield table(tables["top_experts"], f"The {count} most chosen experts of each layer (table 6)")
    yield from _held(tables, "expert_frequency")


def _neurons_altered(views: Mapping[str, Metrics], tables: Tables) -> Iterator[Block]:
    for ending, view in views.items():
        part, venn, base = view.isn_alteration, view.isn_venn, view.archive.model_name
        if part is None or venn is None:
            continue
        if not ending:
            yield from _twin(view)
        yield from _part(view)
        yield from text(altered.isn_alteration_sentence(part, base))
        yield table(tables[f"isn_alteration{ending}"], f"Alteration by category (table 1){_of(view)}", unfolded=True)
        look = "Charts of instruction-specific neurons by layer, the tuned model above the base model"
        yield figure(f"isn_by_layer_tuned{ending}", look, altered.layer_pair_sentence(part))
        look = "Chart of the alteration by layer and category"
        yield figure(f"isn_alteration_by_layer{ending}", look, altered.layer_alteration_sentence(part))
        yield figure(f"isn_venn{ending}", "Bars by layer, one panel an instruction", altered.venn_sentence(venn))
        yield from _held(tables, f"isn_alteration_by_layer{ending}", f"isn_venn{ending}")


def _twin(view: Metrics) -> Iterator[Block]:
    """Which models are compared, and over what."""
    assert view.isn_alteration is not None  # noqa: S101  (asked for it alone)
    twin = view.isn_alteration.twin
    yield from text(
        f"Base model: {view.archive.model} (archive {view.archive.name}). Tuned model: {twin.model} (archive "
        f"{twin.archive}). Compared over {twin.matched:,} instructions that are complete in both archives; "
        f"{twin.only_base:,} of the base archive and {twin.only_tuned:,} of the tuned one have no counterpart."
    )
    if twin.notes:
        yield note(" ".join(twin.notes))


def _experts_altered(metrics: Metrics, tables: Tables) -> Iterator[Block]:
    part, shift = metrics.ise_alteration, metrics.expert_shift
    if part is None or shift is None:
        return
    if part.twin.notes:
        yield note(" ".join(part.twin.notes))
    yield from text(altered.ise_alteration_sentence(part, metrics.archive.model_name))
    yield table(tables["ise_alteration"], "Alteration of expert use by category (table 2)", unfolded=True)
    sentence = findings_experts.shift_sentence(metrics)
    yield figure("expert_shift", "Maps of expert by layer: frequency in the tuned model minus the base model", sentence)
    moved = (
        "By layer and category: how many of a token’s choices go to other experts after tuning, half the sum of the "
        "absolute shifts above. Noise alone puts it above 0 where instructions are few; intervals are centred on it."
    )
    yield figure("expert_moved", "Chart of the choices that move, by layer", moved)
    kept = "The most chosen experts before tuning (table 6); those that stay among them after it are marked *"
    yield table(tables["top_experts_kept"], kept)
    yield from _held(tables, "expert_shift")
