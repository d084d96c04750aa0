"""Write one run, or several side by side, into a folder: report.html, metrics.json, tables, figures, lists."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from sparcom_analysis import plot, plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import Measure
from sparcom_analysis.report.export import json_schema, nodes, source_of, table_files, to_json
from sparcom_analysis.report.folder import check_output, write_folder
from sparcom_analysis.report.lists import lists_of
from sparcom_analysis.report.page import Item, Section, models, render_comparison, render_report
from sparcom_analysis.report.tables import Table, with_interval

Runs = Mapping[str, xr.DataTree] | Sequence[xr.DataTree]


def write_report(run: xr.DataTree | Runs, path: str | Path, *, progress: Progress | None = None) -> Path:
    """Write the files of a run, replacing an earlier report, and return the path of report.html.

    Args:
        run: a run from `analyze` or `read_metrics`, or several runs as a sequence or a mapping by title. Each of
            several runs gets a subfolder, and report.html shows them side by side.
        path: a folder outside any archive; created if needed.
        progress: called with Datasets done and in total, or with runs if there are several.

    Raises:
        InvalidInputError: the folder lies inside an archive. StorageError: the operating system refused.
    """
    folder = Path(path)
    check_output(folder)
    if isinstance(run, xr.DataTree):
        files = run_files(run, progress)
    elif isinstance(run, Sequence):
        titles = _distinct([models(one.attrs) for one in run])
        files = _several(dict(zip(titles, run, strict=True)), progress)
    else:
        files = _several(run, progress)
    write_folder(folder, files)
    return folder / "report.html"


def run_files(run: xr.DataTree, progress: Progress | None = None) -> dict[str, bytes]:
    """Return every file of a run by relative path, metrics.json last."""
    files: dict[str, bytes] = {}
    items: dict[str, Item] = {}
    held = [(path, measure, ds) for path, measure, ds in nodes(run) if measure is not None]
    for done, (path, measure, ds) in enumerate(held, 1):
        name = path.replace("/", "-")
        made, tables = table_files(path, measure, ds)
        drawn = _figure_files(name, draw(measure, ds))
        files |= made | drawn
        tuned = "fine-tuned" * path.startswith("tuned/")
        items[path] = Item(
            name=name,
            heading=", ".join(filter(None, (ds.attrs["model"], tuned, ds.attrs.get("population_title")))),
            svg=drawn.get(f"figures/{name}.svg", b""),
            caption=measure.caption(ds) if drawn else "",
            sentences=measure.sentences(ds),
            tables=tables,
            note=str(ds.attrs.get("reason", "")),
        )
        if progress is not None:
            progress(done, len(held))
    files |= {**lists_of(run), "report.html": render_report(run, items)}
    return files | {"metrics.schema.json": json_schema(), "metrics.json": to_json(run)}


def draw(measure: Measure, ds: xr.Dataset) -> Figure | None:
    """Return the figure of a measure, or None if there is nothing to draw."""
    if measure.figure is not None:
        return measure.figure(ds)
    drawn = None if measure.plot is None else measure.plot(ds)
    return None if drawn is None else drawn.get_figure(root=True)


def _figure_files(name: str, figure: Figure | None) -> dict[str, bytes]:
    if figure is None:
        return {}
    return {f"figures/{name}.{kind}": plotting.render(figure, kind) for kind in ("svg", "pdf")}


def _several(runs: Mapping[str, xr.DataTree], progress: Progress | None) -> dict[str, bytes]:
    """Return the files of each run in its own folder, and the joint files; report.html is last."""
    slugs = [re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.").lower() or "run" for title in runs]
    slugs = _distinct(["figures", "tables", *slugs])[2:]
    files: dict[str, bytes] = {}
    for done, (slug, run) in enumerate(zip(slugs, runs.values(), strict=True), 1):
        files |= {f"{slug}/{name}": data for name, data in run_files(run).items()}
        if progress is not None:
            progress(done, len(runs))
    sections = []
    for measure in REGISTRY:
        made, item = _side_by_side(measure, runs)
        files |= made
        sections += [] if item is None else [Section(measure, [item])]
    links = {title: f"{slug}/report.html" for title, slug in zip(runs, slugs, strict=True)}
    return files | {"report.html": render_comparison(links, runs, sections)}


def _side_by_side(measure: Measure, runs: Mapping[str, xr.DataTree]) -> tuple[dict[str, bytes], Item | None]:
    """Return files and item of one measure over several runs: panels on one scale (tuned above base), or a table."""
    found = {title: {path: ds for path, _, ds in nodes(run) if "value" in ds} for title, run in runs.items()}
    rows = [[found[title].get(group + measure.name) for title in runs] for group in ("tuned/", "")]
    rows = [row for row in rows if any(ds is not None for ds in row)]
    held = {title: ds for title, ds in zip(runs, rows[-1] if rows else (), strict=False) if ds is not None}
    dims = {ds["value"].dims for ds in held.values()}
    if len(held) < 2 or len(dims) != 1:
        return {}, None
    axes = next(iter(dims))
    if axes == ("category",):
        table = _model_table(held)
        tex = table.latex(f"{measure.title}, per model ({source_of(measure)}).", measure.name)
        return {f"tables/{measure.name}.tex": tex}, Item(measure.name, tables={measure.name: table})
    if measure.plot is None or axes[-2:] not in (("category", "category_2"), ("category", "layer")):
        return {}, None
    names = [[title + ", fine-tuned" * (row is not rows[-1]) for title in runs] for row in rows]
    files = _figure_files(measure.name, plot.panels(rows, names, measure=measure.name))
    above = " Fine-tuned models are above base models." if len(rows) > 1 else ""
    caption = f"{measure.title} ({source_of(measure)}), one panel per model, all on one scale.{above}"
    return files, Item(measure.name, svg=files[f"figures/{measure.name}.svg"], caption=caption)


def _model_table(held: Mapping[str, xr.Dataset]) -> Table:
    """Return means with intervals, one row per model and one column per category, as in the paper's tables 1 and 2."""
    labels = list(dict.fromkeys(str(name) for ds in held.values() for name in ds["category"].values))
    rows = []
    for title, ds in held.items():
        cells = {str(name): _cell(ds.sel(category=name), "") for name in ds["category"].values}
        rows.append([title, *map(cells.get, labels), _cell(ds, "overall_")])
    return Table(["model", *labels, "all"], rows)


def _cell(ds: xr.Dataset, prefix: str) -> str | float:
    return with_interval(*(float(ds.get(f"{prefix}{name}", math.nan)) for name in ("value", "ci_low", "ci_high")))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with a number appended to each repeat."""
    found: list[str] = []
    for name in names:
        tries = (name, *(f"{name}-{number}" for number in range(2, len(names) + 2)))
        found.append(next(one for one in tries if one not in found))
    return found
