"""The page and table that compare a dense and an MoE model, each before and after tuning.

Made of what `sparcom analyze --tuned` wrote; computes nothing but means of its matrices. The page is one file that
loads nothing and links to both reports.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_cli.shared.text import format_table
from sparcom_data.errors import InvalidInputError
from sparcom_data.storage import write_file

if TYPE_CHECKING:
    from sparcom_analysis.schema.metrics import Metrics

CONTENTS = re.compile(r'<li><a href="#([^"]+)">([^<]+)</a>')  # of a report


def write_comparison(output: Path, *folders: Path, tuned_here: bool) -> tuple[Path, str]:
    """Write output/index.html; return its path and the table of alterations as text.

    Args:
        output: folder that holds both results.
        folders: results of `sparcom analyze --tuned` for a dense model, then for an MoE model.
        tuned_here: whether the demo itself made both fine-tuned models, so that the page can tell how.

    Raises:
        InvalidInputError: an analysis lacks the fine-tuned model, or the second model has no experts.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from sparcom_analysis.findings import alteration, experts, neurons
    from sparcom_analysis.findings.short import in_short
    from sparcom_analysis.schema import Metrics

    dense, moe = (Metrics.model_validate_json((folder / "metrics.json").read_bytes()) for folder in folders)
    if dense.isn_alteration is None or moe.ise_alteration is None or moe.archive.moe is None:
        raise InvalidInputError(
            "the page compares a dense and an MoE model, each base and tuned; analyze both with --tuned first"
        )
    columns = [(title, view, folders[at > 0], end) for at, (title, view, end) in enumerate(_populations(dense, moe))]
    environment = Environment(
        loader=PackageLoader("sparcom_cli.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    alterations = _alterations(dense, moe)
    page = environment.get_template("demo.html.j2").render(
        dense=dense,
        moe=moe,
        config=moe.archive.moe,
        tuned_here=tuned_here,
        columns=columns,
        likeness=likeness,
        alterations=alterations,
        short={"Dense model": in_short(dense), "MoE model": in_short(moe)},
        contents=_contents(*folders),
        neuron_findings=neurons,
        alteration_findings=alteration,
        expert_findings=experts,
        figure_data=lambda folder, name: base64.b64encode((folder / "figures" / f"{name}.svg").read_bytes()).decode(),
        folders=folders,
    )
    write_file(output / "index.html", [page.encode()])
    return output / "index.html", _table(alterations)


def likeness(matrix: Sequence[Sequence[float | None]]) -> tuple[float | None, float | None, float | None]:
    """Return the mean similarity within categories, between categories, and their ratio; None where undefined.

    Args:
        matrix: similarities of categories without pairs of an instruction with itself.
    """
    cells = [(value, i == j) for i, row in enumerate(matrix) for j, value in enumerate(row) if value is not None]
    within, between = ([value for value, same in cells if same is kind] for kind in (True, False))
    means = [sum(values) / len(values) if values else None for values in (within, between)]
    ratio = means[0] / means[1] if means[0] is not None and means[1] is not None and means[1] > 0 else None
    return means[0], means[1], ratio


def _populations(dense: Metrics, moe: Metrics) -> list[tuple[str, Metrics, str]]:
    """Return (title, metrics, ending of its files) of each population of neurons, the dense model's first."""
    from sparcom_analysis.report.files import component_views

    from sparcom_analysis.archive.populations import TITLES

    parts = [(view.component, view, end) for end, view in component_views(moe).items()]
    routed = [(f"MoE model: {TITLES[component]}", view, end) for component, view, end in parts if component is not None]
    return [("Dense model", dense, ""), *routed]


def _alterations(dense: Metrics, moe: Metrics) -> list[tuple[str, Any]]:
    """Return (label, alteration) of each population's neurons and of expert use; only what was compared."""
    rows: list[tuple[str, Any]] = [
        (f"{name}, neurons", view.isn_alteration) for name, view, _ in _populations(dense, moe)
    ]
    return [(label, part) for label, part in [*rows, ("MoE model, expert use", moe.ise_alteration)] if part is not None]


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    """Return aligned columns for a terminal; rows with other categories than the first are left out."""
    names = list(rows[0][1].categories)
    title = "alteration by tuning (0: the same; neurons: 1 - Jaccard index, experts: 1 - correlation)"
    shown = [
        (label, [*part.alteration, part.overall.alteration]) for label, part in rows if list(part.categories) == names
    ]
    return "\n".join([title, *format_table([*names, "all"], shown)])


def _contents(dense: Path, moe: Path) -> dict[str, list[tuple[str, str]]]:
    """Return, by title of a section, the (model, address) of it in each report."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, folder in (("MoE model", moe), ("dense model", dense)):  # the MoE report has the longer list
        report = (folder / "report.html").read_text(encoding="utf-8")
        for anchor, title in CONTENTS.findall(report):
            found.setdefault(html.unescape(title), []).insert(0, (name, f"{folder.name}/report.html#{anchor}"))
    return found
