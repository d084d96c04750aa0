"""Render report.html, one self-contained file, in a loop over the registry of measures."""

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

# Order of the opening sentences; other measures follow in registry order.
LEAD = ("similarity", "finetuning_jaccard", "routing_correlation", "finetuning_correlation", "layers", "general_unique")
MAX_SENTENCES, MAX_FIGURES = 5, 3
MAX_ROWS = 200  # per table on the page; the files hold all rows
REM_PER_POINT, TWO_COLUMNS_REM, MAX_REM = 0.09, 40.0, 51.0  # widths of figures
Facts = Mapping[Any, Any]
POSITIONS = {"prompt": "prompt tokens", "response": "response tokens", "all": "prompt and response tokens"}


@dataclass(frozen=True, slots=True)
class Item:
    """One node of a run on the page, or one measure of several runs.

    Attributes:
        name: stem of the figure's file name. heading: model and population, shown if a measure has several items.
        svg: the figure; empty if there is none. tables: rounded tables by file name.
        note: reason why values are missing.
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
        """Data URI of the figure. A separate image per figure keeps SVG ids from colliding."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode('ascii')}"

    @property
    def width(self) -> float:
        """Maximum width in rem, proportional to the SVG's width so that all figures have one font size."""
        found = re.search(rb'width="([0-9.]+)pt"', self.svg[:1000])
        return round(min(MAX_REM, REM_PER_POINT * float(found[1])), 1) if found else MAX_REM


@dataclass(frozen=True, slots=True)
class Section:
    """A measure on the page."""

    measure: Measure
    items: Sequence[Item]

    @property
    def lead(self) -> str:
        """First sentence of the section; empty if it has none."""
        return next((item.sentences[0] for item in self.items if item.sentences), "")


def render_report(run: xr.DataTree, items: Mapping[str, Item]) -> bytes:
    """Return the bytes of report.html; `items` maps node paths to page items."""
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
        answers=[section.lead for section in first if section.lead][:MAX_SENTENCES],
        figures=[section.items[0] for section in first if section.items[0].width < TWO_COLUMNS_REM][:MAX_FIGURES],
        missing=_missing(facts),
        tokens=_tokens(facts),
        length_sentence=length_sentence(facts["instructions"]["by_category"]),
        caveat=interval_caveat(facts["settings"]),
    )


def render_comparison(links: Mapping[str, str], runs: Mapping[str, xr.DataTree], sections: list[Section]) -> bytes:
    """Return the bytes of the page over several runs; `links` and `runs` map titles to report addresses and runs."""
    facts = {title: run.attrs for title, run in runs.items()}
    leads = zip_longest(*(lead_sentences(run) for run in runs.values()))
    answers = [f"{title}: {sentence}" for row in leads for title, sentence in zip(runs, row, strict=True) if sentence]
    return _render(
        title="Instruction-specific neurons of " + ", ".join(links),
        links=links,
        runs=facts,
        tokens={title: _tokens(own) for title, own in facts.items()},
        sections=sections,
        answers=answers[:MAX_SENTENCES],
        notes=[f"{title}: {note}" for title, own in facts.items() for note in notes(own)],
    )


def lead_sentences(run: xr.DataTree, *more: str) -> Iterator[str]:
    """Yield the first sentence of each measure in `LEAD`, then of each measure in `more`."""
    measures = {measure.name: measure for measure in REGISTRY}
    for name in (*LEAD, *more):
        if name in run.children and name in measures:
            yield from measures[name].sentences(run[name].to_dataset())[:1]


def models(facts: Facts) -> str:
    """Return the distinct model names of a run, joined by "and"."""
    names = [str(facts[part]["model_name"]) for part in ("archive", "tuned") if part in facts]
    return " and ".join(dict.fromkeys(names))


def notes(facts: Facts) -> Iterator[str]:
    """Yield caveats: positions that differ from the paper's, warnings, and differences between the two archives."""
    if (positions := facts["settings"]["positions"]) != "prompt":
        yield f"Frequencies count {POSITIONS[positions]}. The paper counts prompt tokens."
    yield from facts["warnings"]
    yield from facts.get("comparison", {}).get("notes", ())


def length_sentence(by_category: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on how mean lengths differ between categories; empty for one category."""
    lengths = {str(one["category"]): one["mean_tokens"] for one in by_category if one["mean_tokens"]}
    if len(lengths) < 2:
        return ""
    low, high = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    if lengths[low] == lengths[high]:
        return f"Here the mean length is {lengths[low]:.1f} tokens in every category."
    return (
        f"Here mean lengths range from {lengths[low]:.1f} tokens ({low}) to {lengths[high]:.1f} tokens ({high}), "
        f"a ratio of {lengths[high] / lengths[low]:.1f}."
    )


def interval_caveat(settings: Mapping[str, Any]) -> str:
    """Return a warning and its remedy if there are too few resamples for the confidence level; else an empty text."""
    n_resamples, level = settings["n_resamples"], settings["confidence_level"]
    needed = math.ceil(round(2 / (1 - level), 6))  # one draw below the interval and one above
    if not n_resamples or n_resamples >= needed:
        return ""
    return (
        f"A {100 * level:.10g} % interval needs at least {needed:,} resamples. This run drew {n_resamples:,}, so the "
        "interval spans nearly all of them. Raise --resamples or lower --confidence."
    )


def _tokens(facts: Facts) -> str:
    content = "content " if facts["settings"]["counted_tokens"] == "content" else ""
    return POSITIONS[facts["settings"]["positions"]].replace("tokens", f"{content}tokens")


def _missing(facts: Facts) -> dict[str, str]:
    """Return the titles of measures that were not computed, keyed by reason."""
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
    return visible(template.render(max_rows=MAX_ROWS, source_of=source_of, **context)).encode()
