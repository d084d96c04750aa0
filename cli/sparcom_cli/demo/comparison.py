"""The page and table that compare a dense and an MoE model, each before and after fine-tuning.

Reads the results of `sparcom analyze --tuned` and computes only means of their matrices. The page is one
self-contained file with links to both reports.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparcom_cli.shared.text import format_table
from sparcom_data.errors import InvalidInputError
from sparcom_data.storage import write_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xarray import Dataset, DataTree

SECTION = re.compile(r'<details id="(measure-\w+)"><summary><h2>([^<]+)</h2>')  # in a report


@dataclass(frozen=True, slots=True)
class View:
    """One population of neurons, or the experts, of one model: its measures, sentences and figures.

    Attributes:
        title: title of its column.
        run: results of the model.
        folder: folder of its report.
        group: group of the measures in the tree, "" or "neuron/".
    """

    title: str
    run: DataTree
    folder: Path
    group: str = ""

    def measure(self, name: str) -> Dataset:
        """Return the Dataset of a measure."""
        return self.run[self.group + name].to_dataset()

    def sentence(self, name: str) -> str:
        """Return the first sentence of a measure, or "" if it has none."""
        from sparcom_analysis.measures import REGISTRY

        found = next(one for one in REGISTRY if one.name == name).sentences(self.measure(name))
        return found[0] if found else ""

    def figure(self, name: str) -> str:
        """Return the figure of a measure as a data address."""
        file = self.folder / "figures" / f"{self.group.replace('/', '-')}{name}.svg"
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def write_comparison(output: Path, *folders: Path, tuned_here: bool) -> tuple[Path, str]:
    """Write output/index.html; return its path and the similarities before and after fine-tuning as text.

    Args:
        output: folder that holds both results.
        folders: results of `sparcom analyze --tuned` for a dense model, then for an MoE model.
        tuned_here: whether the demo made both fine-tuned models; the page then describes their training.

    Raises:
        InvalidInputError: an analysis lacks the fine-tuned model, or the second model has no experts.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sparcom_analysis import read_metrics
    from sparcom_analysis.report.page import lead_sentences

    dense, moe = (read_metrics(folder) for folder in folders)
    if "finetuning_jaccard" not in dense.children or "finetuning_correlation" not in moe.children:
        raise InvalidInputError(
            "the page compares a dense and an MoE model, each base and tuned; run `sparcom analyze --tuned` for both"
        )
    views = [View("Dense model", dense, folders[0]), *_populations(moe, folders[1])]
    experts = View("MoE model, expert use", moe, folders[1])
    environment = Environment(
        loader=PackageLoader("sparcom_cli.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [(f"{view.title}, neurons", view.measure("finetuning_jaccard")) for view in views]
    rows.append((experts.title, experts.measure("finetuning_correlation")))
    page = environment.get_template("demo.html.j2").render(
        dense=dense.attrs,
        moe=moe.attrs,
        config=moe.attrs["archive"]["moe"],
        tuned_here=tuned_here,
        views=views,
        experts=experts,
        top=experts.measure("finetuning_top_experts"),
        within_and_between=within_and_between,
        rows=rows,
        short={"Dense model": list(lead_sentences(dense)), "MoE model": list(lead_sentences(moe))},
        contents=_contents(*folders),
        folders=folders,
    )
    write_file(output / "index.html", [page.encode()])
    return output / "index.html", _table(rows)


def within_and_between(ds: Dataset) -> tuple[float, float, float]:
    """Return the mean within categories, between categories, and their ratio; NaN where undefined.

    The measure has the dimensions self_pairs, category and category_2. Pairs of an instruction with itself are left
    out, and means are over categories.
    """
    matrix = ds["value"].sel(self_pairs=False).values
    same = np.eye(len(matrix), dtype=np.bool_)
    within, between = _mean(matrix[same]), _mean(matrix[~same])
    return within, between, within / between if between > 0 else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _populations(run: DataTree, folder: Path) -> Iterator[View]:
    """Yield the compared neuron populations of the MoE model, routed experts first."""
    for index, part in enumerate(run.attrs["populations"]):
        group = f"{part['population']}/" if index else ""
        yield View(f"MoE model: {part['title']}", run, folder, group)


def _table(rows: list[tuple[str, Any]]) -> str:
    """Return aligned columns for a terminal; rows with other categories than the first are left out."""
    names = rows[0][1]["category"].values.tolist()
    title = "similarity before and after fine-tuning (neurons: mean Jaccard index, experts: mean Pearson correlation)"
    shown = [
        (label, [None if math.isnan(value) else value for value in [*ds["value"].values, float(ds["overall_value"])]])
        for label, ds in rows
        if ds["category"].values.tolist() == names
    ]
    return "\n".join([title, *format_table([*names, "all"], shown)])


def _contents(dense: Path, moe: Path) -> dict[str, list[tuple[str, str]]]:
    """Return each section title's (model, address) pairs, one per report that has the section."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, folder in (("MoE model", moe), ("dense model", dense)):  # the MoE report has the longer list
        report = (folder / "report.html").read_text(encoding="utf-8")
        for anchor, title in SECTION.findall(report):
            found.setdefault(html.unescape(title), []).insert(0, (name, f"{folder.name}/report.html#{anchor}"))
    return found
