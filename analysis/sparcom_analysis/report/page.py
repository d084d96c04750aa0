"""Renders report.html: one file that holds everything and loads nothing. A loop over the registry of measures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.plotting.fitting import visible
from sparcom_analysis.report.export import nodes, source_of
from sparcom_analysis.report.tables import Table, rounded

# Most important first; others follow in the order of the registry.
LEAD = ("similarity", "finetuning_jaccard", "routing_correlation", "finetuning_correlation", "layers", "general_unique")
MOST_SENTENCES, MOST_FIGURES = 5, 3
MOST_ROWS = 200  # of a table that the page shows; the files hold all
REM_PER_POINT, TWO_COLUMNS_REM, WIDEST_REM = 0.09, 40.0, 51.0  # widths of figures
Facts = Mapping[Any, Any]
POSITIONS = {"prompt": "prompt tokens", "response": "response tokens", "all": "prompt and response tokens"}


@dataclass(frozen=True, slots=True)
class Item:
    """One node of the run on the page, or one measure of several runs.

    Attributes:
        name: of its figure's file. heading: model and population, for a measure of several.
        svg: the figure; empty without one. tables: as a person reads them, by file name.
        note: what could not be computed of it.
    """

    name: str
    heading: str = ""
    svg: bytes = b""
    caption: str = ""
    sentences: Sequence[str] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    note: str = ""

    @property
    def source(self) -> str:
        """Address that holds the figure: an image of its own, so that no two share ids."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode('ascii')}"

    @property
    def width(self) -> float:
        """Largest width of the figure in rem: by its own width, so that letters are as large in all."""
        found = re.search(rb'width="([0-9.]+)pt"', self.svg[:1000])
        return round(min(WIDEST_REM, REM_PER_POINT * float(found[1])), 1) if found else WIDEST_REM


@dataclass(frozen=True, slots=True)
class Section:
    """A measure on the page."""

    measure: Measure
    items: Sequence[Item]

    @property
    def lead(self) -> str:
        """The first sentence."""
        return next((item.sentences[0] for item in self.items if item.sentences), "")


def render_report(run: xr.DataTree, items: Mapping[str, Item]) -> bytes:
    """Return the bytes of report.html; `items`: what is shown of each node of the run, by path."""
    facts = run.attrs
    shown: dict[str, list[Item]] = {}
    for path, measure, _ in nodes(run):
        if measure is not None:
            shown.setdefault(measure.name, []).append(items[path])
    sections = [Section(measure, shown[measure.name]) for measure in REGISTRY if measure.name in shown]
    rank = {name: place for place, name in enumerate(LEAD)}
    first = [section for section in sections if section.items[0].name == section.measure.name]
    first.sort(key=lambda section: rank.get(section.measure.name, len(rank)))
    return _render(
        title=f"Instruction-specific neurons{' and experts' * ('moe' in facts['archive'])} of {models(facts)}",
        facts=facts,
        moe="moe" in facts["archive"],
        notes=list(notes(facts)),
        sections=sections,
        answers=[section.lead for section in first if section.lead][:MOST_SENTENCES],
        figures=[section.items[0] for section in first if section.items[0].width < TWO_COLUMNS_REM][:MOST_FIGURES],
        missing=_missing(facts),
        tokens=_tokens(facts),
        length_sentence=length_sentence(facts["instructions"]["by_category"]),
        caveat=interval_caveat(facts["settings"]),
    )


def render_comparison(links: Mapping[str, str], runs: Mapping[str, xr.DataTree], sections: list[Section]) -> bytes:
    """Return the bytes of the page over several runs: addresses of their reports, and the runs, by title."""
    facts = {title: run.attrs for title, run in runs.items()}
    leads = zip_longest(*(lead_sentences(run) for run in runs.values()))
    answers = [f"{title}: {said}" for row in leads for title, said in zip(runs, row, strict=True) if said]
    return _render(
        title="Instruction-specific neurons of " + ", ".join(links),
        links=links,
        runs=facts,
        tokens={title: _tokens(own) for title, own in facts.items()},
        sections=sections,
        answers=answers[:MOST_SENTENCES],
        notes=[f"{title}: {note}" for title, own in facts.items() for note in notes(own)],
    )


def lead_sentences(run: xr.DataTree, *more: str) -> Iterator[str]:
    """Yield the first sentence of each measure that a page opens with, then of further ones, in order of importance."""
    measures = {measure.name: measure for measure in REGISTRY}
    for name in (*LEAD, *more):
        if name in run.children and name in measures:
            yield from measures[name].sentences(run[name].to_dataset())[:1]


def models(facts: Facts) -> str:
    """Return the names of the models of a run."""
    names = [str(facts[part]["model_name"]) for part in ("archive", "tuned") if part in facts]
    return " and ".join(dict.fromkeys(names))


def notes(facts: Facts) -> Iterator[str]:
    """Yield what changes the reading: warnings, other positions than the paper's, differences of the two archives."""
    if (positions := facts["settings"]["positions"]) != "prompt":
        yield f"Frequencies are counted over {POSITIONS[positions]}. The paper counts prompt tokens."
    yield from facts["warnings"]
    yield from facts.get("comparison", {}).get("notes", ())


def length_sentence(by_category: Sequence[Mapping[str, Any]]) -> str:
    """Return how far mean lengths differ between categories; empty for one category."""
    lengths = {str(one["category"]): one["mean_tokens"] for one in by_category if one["mean_tokens"]}
    if len(lengths) < 2:
        return ""
    low, high = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    if lengths[low] == lengths[high]:
        return f"Here the mean length is {lengths[low]:.1f} tokens in every category."
    return (
        f"Here the mean length goes from {lengths[low]:.1f} tokens ({low}) to {lengths[high]:.1f} ({high}), "
        f"{lengths[high] / lengths[low]:.1f} times as many."
    )


def interval_caveat(settings: Mapping[str, Any]) -> str:
    """Return that intervals end at the extremes of too few draws, and the remedy; empty if there are enough."""
    n_resamples, level = settings["n_resamples"], settings["confidence_level"]
    needed = math.ceil(round(2 / (1 - level), 6))  # one draw below the interval and one above
    if not n_resamples or n_resamples >= needed:
        return ""
    return (
        f"An interval of {100 * level:.10g} % needs {needed:,} resamples, so that some lie beyond its ends. Here are "
        f"{n_resamples:,}, and the ends are about the lowest and the highest of them. Give more --resamples, or a "
        "smaller --confidence."
    )


def _tokens(facts: Facts) -> str:
    content = " of content" if facts["settings"]["counted_tokens"] == "content" else ""
    return POSITIONS[facts["settings"]["positions"]] + content


def _missing(facts: Facts) -> dict[str, str]:
    """Return the titles of the measures that could not be computed, by reason."""
    titles = {measure.name: measure.title for measure in REGISTRY} | {"tuned": "fine-tuned"}
    titles |= {part["population"]: part["title"] for part in facts["populations"]}
    reasons: dict[str, list[str]] = {}
    for one in facts.get("not_computed", ()):
        *group, name = (titles.get(part, part) for part in one["measure"].split("/"))
        reasons.setdefault(one["reason"], []).append(f"{name} ({', '.join(group)})" if group else name)
    return {reason: "; ".join(names) for reason, names in reasons.items()}


def _render(**context: Any) -> bytes:
    loader, undefined = PackageLoader("sparcom_analysis", "report/templates"), StrictUndefined
    environment = Environment(loader=loader, undefined=undefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: "n/a" if value is None else rounded(value)
    environment.filters["mean"] = lambda value: "n/a" if value is None else f"{value:,.1f}"
    template = environment.get_template("page.html.j2")
    return visible(template.render(most_rows=MOST_ROWS, source_of=source_of, **context)).encode()
