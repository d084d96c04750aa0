"""Convert a run to metrics.json, its JSON Schema, and tables; read metrics.json back.

metrics.json holds every number of a run except variables along `member`, the lists of neurons and experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ValidationError

from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import OURS, Measure
from sparcom_analysis.report.facts import FORMAT_VERSION
from sparcom_analysis.report.tables import Table, csv_bytes, for_people, from_frame, measure_frames
from sparcom_data.errors import InvalidInputError

MEMBER = "member"
MAX_LATEX_ROWS = 40


class Variable(BaseModel, extra="forbid"):
    """One variable of a Dataset; NaN is stored as null."""

    dims: list[str]
    dtype: str
    attrs: dict[str, Any]
    data: Any


class MeasureData(BaseModel, extra="forbid"):
    """One Dataset, as returned by xarray.Dataset.to_dict, with the dtype of each variable."""

    dims: dict[str, int]
    attrs: dict[str, Any]
    coords: dict[str, Variable]
    data_vars: dict[str, Variable]


class MetricsFile(BaseModel, extra="forbid"):
    """Schema of metrics.json: attributes of the run, and measures by tree path."""

    format_version: Literal[3]
    attributes: dict[str, Any]
    measures: dict[str, MeasureData]


def nodes(run: xr.DataTree) -> Iterator[tuple[str, Measure | None, xr.Dataset]]:
    """Yield path, measure and Dataset of every node in registry order. Unknown measures come last, as None."""
    held = {node.path.strip("/"): node for node in run.subtree if "measure" in node.attrs}
    for measure in (*REGISTRY, None):
        for path in [path for path, node in held.items() if measure is None or node.attrs["measure"] == measure.name]:
            yield path, measure, held.pop(path).to_dataset(inherit=False)


def metrics(run: xr.DataTree) -> dict[str, Any]:
    """Return a run as JSON types: `format_version`, `attributes` of the root, and `measures` by path."""
    measures = {}
    for path, _, ds in nodes(run):
        kept = ds.drop_vars([name for name, held in ds.variables.items() if MEMBER in held.dims])
        measures[path] = found = kept.to_dict()
        for name, held in (found["coords"] | found["data_vars"]).items():
            held["dtype"] = "str" if kept[name].dtype.kind == "U" else str(kept[name].dtype)
    attributes = {name: value for name, value in run.attrs.items() if name != "format_version"}
    return {"format_version": FORMAT_VERSION, "attributes": _plain(attributes), "measures": _plain(measures)}


def to_json(run: xr.DataTree) -> bytes:
    """Return the bytes of metrics.json."""
    return f"{json.dumps(metrics(run), indent=1, ensure_ascii=True, allow_nan=False)}\n".encode()


def read_metrics(source: str | Path | bytes) -> xr.DataTree:
    """Read metrics.json into the tree that `analyze` returned, without variables along `member`.

    Args:
        source: the file, its folder, or its bytes.

    Raises:
        InvalidInputError: the source is not a metrics.json of version 3.
    """
    named, data = "the input", source
    if not isinstance(data, bytes):
        path = Path(data) / "metrics.json" if Path(data).is_dir() else Path(data)
        named, data = str(path), path.read_bytes()
    try:
        file = MetricsFile.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInputError(
            f"metrics.json must have format_version {FORMAT_VERSION} and match its schema; {named} does not "
            f"({error.errors()[0]['msg']}). Analyze the archives again"
        ) from error
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), **{path: _dataset(node) for path, node in file.measures.items()}})
    tree.attrs = {"format_version": FORMAT_VERSION, **file.attributes}
    return tree


def _dataset(node: MeasureData) -> xr.Dataset:
    held = node.model_dump()
    variables = [*held["coords"].values(), *held["data_vars"].values()]
    for one in variables:
        kind = object if one["dtype"].startswith("float") else one["dtype"]
        one["data"] = np.array(one["data"], dtype=kind).astype(one["dtype"])  # None becomes NaN
    for one in (held, *variables):
        one["attrs"] = {name: math.nan if value is None else value for name, value in one["attrs"].items()}
    return xr.Dataset.from_dict(held)


def _plain(value: Any) -> Any:
    """Return NumPy values as Python lists, dicts and numbers; non-finite floats become None."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_schema() -> bytes:
    """Return the JSON Schema of metrics.json."""
    return f"{json.dumps(MetricsFile.model_json_schema(), indent=1)}\n".encode()


def table_files(path: str, measure: Measure, ds: xr.Dataset) -> tuple[dict[str, bytes], dict[str, Table]]:
    """Return the CSV and LaTeX files of a measure's tables, and the report's tables by name."""
    files: dict[str, bytes] = {}
    shown: dict[str, Table] = {}
    for name, frame in measure_frames(measure, ds).items():
        part = name.removeprefix(measure.name).strip("-_ ")
        stem = path.replace("/", "-") + (f"-{part}" if part else "")
        plain, shown[stem] = (
            from_frame(frame) if name else for_people(ds, from_frame(frame), intervals) for intervals in (False, True)
        )
        files[f"tables/{stem}.csv"] = csv_bytes(frame)
        if len(plain.rows) <= MAX_LATEX_ROWS:
            caption = f"{measure.title}, {ds.attrs['model']} ({source_of(measure)})."
            files[f"tables/{stem}.tex"] = plain.latex(caption, stem)
    return files, shown


def source_of(measure: Measure) -> str:
    """Return the equation, e.g. "SPARCOM, eq. 10", or "our measure" if the paper has none."""
    return "our measure" if measure.equation == OURS else measure.equation
