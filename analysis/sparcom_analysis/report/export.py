"""A run as files for programs: metrics.json and its JSON Schema, tables; and back again.

metrics.json holds every number of a run but the lists of neurons and experts (dimension `member`). Each measure is a
Dataset as `xarray.Dataset.to_dict` gives it, with the dtype of each variable; NaN is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, ValidationError

from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import OURS, Measure
from sparcom_analysis.report.facts import FORMAT_VERSION
from sparcom_analysis.report.tables import Table, csv_bytes, for_people, from_frame, measure_frames
from sparcom_data.errors import InvalidInputError

MEMBER = "member"
MOST_LATEX_ROWS = 40


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Variable(_Part):
    """A variable of a Dataset; NaN is null."""

    dims: list[str]
    dtype: str
    attrs: dict[str, Any]
    data: Any


class MeasureData(_Part):
    """A Dataset, as xarray.Dataset.to_dict gives it."""

    dims: dict[str, int]
    attrs: dict[str, Any]
    coords: dict[str, Variable]
    data_vars: dict[str, Variable]


class MetricsFile(_Part):
    """metrics.json: attributes of the run, and measures by path in the tree."""

    format_version: Literal[3]
    attributes: dict[str, Any]
    measures: dict[str, MeasureData]


def nodes(run: xr.DataTree) -> Iterator[tuple[str, Measure | None, xr.Dataset]]:
    """Yield path, measure and Dataset of every node, in the order of the registry; unknown measures last, as None."""
    known = {measure.name: place for place, measure in enumerate(REGISTRY)}
    held = [node for node in run.subtree if "measure" in node.attrs]
    for node in sorted(held, key=lambda node: known.get(node.attrs["measure"], len(known))):
        place = known.get(node.attrs["measure"])
        yield node.path.strip("/"), None if place is None else REGISTRY[place], node.to_dataset(inherit=False)


def metrics(run: xr.DataTree) -> dict[str, Any]:
    """Return a run as JSON holds it: `format_version`, `attributes` of the root, `measures` by path."""
    measures = {}
    for path, _, ds in nodes(run):
        kept = ds.drop_vars([name for name, held in ds.variables.items() if MEMBER in held.dims])
        found = kept.to_dict()
        for part in ("coords", "data_vars"):
            for name, held in found[part].items():
                held["dtype"] = "str" if kept[name].dtype.kind == "U" else str(kept[name].dtype)
        measures[path] = _plain(found)
    attributes = {name: value for name, value in run.attrs.items() if name != "format_version"}
    return {"format_version": FORMAT_VERSION, "attributes": _plain(attributes), "measures": measures}


def to_json(run: xr.DataTree) -> bytes:
    """Return the bytes of metrics.json."""
    return f"{json.dumps(metrics(run), indent=1, ensure_ascii=True, allow_nan=False)}\n".encode()


def read_metrics(source: str | Path | bytes) -> xr.DataTree:
    """Read a metrics.json, its folder or its bytes into the tree that `analyze` returned, without lists of members.

    Raises:
        InvalidInputError: it is not a metrics.json of version 3.
    """
    named, held = "it", source
    if not isinstance(held, bytes):
        path = Path(held)
        path = path / "metrics.json" if path.is_dir() else path
        named, held = str(path), path.read_bytes()
    try:
        file = MetricsFile.model_validate_json(held)
    except ValidationError as error:
        raise InvalidInputError(
            f"metrics.json must have format_version {FORMAT_VERSION} and the form of its schema; {named} has not "
            f"({error.errors()[0]['msg']}). Analyze the archives again"
        ) from error
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), **{path: _dataset(node) for path, node in file.measures.items()}})
    tree.attrs = {"format_version": FORMAT_VERSION, **file.attributes}
    return tree


def _dataset(node: MeasureData) -> xr.Dataset:
    held = {name: (own.dims, _array(own), _attributes(own)) for name, own in (node.data_vars | node.coords).items()}
    return xr.Dataset(held, attrs=_attributes(node)).set_coords([*node.coords])


def _array(held: Variable) -> Any:
    kind = object if held.dtype.startswith("float") else held.dtype
    return np.array(held.data, dtype=kind).astype(held.dtype)  # None becomes NaN


def _attributes(held: Variable | MeasureData) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in held.attrs.items()}


def _plain(value: Any) -> Any:
    """Return lists, dicts and numbers of Python for those of NumPy; None for what is no number."""
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
    """Return the CSV and LaTeX files of a measure's tables, and by name the tables as a person reads them."""
    files: dict[str, bytes] = {}
    shown: dict[str, Table] = {}
    for name, frame in measure_frames(measure, ds).items():
        part = name.removeprefix(measure.name).strip("-_ ")
        stem = path.replace("/", "-") + (f"-{part}" if part else "")
        table = from_frame(frame)
        plain, shown[stem] = (table if name else for_people(ds, table, intervals) for intervals in (False, True))
        files[f"tables/{stem}.csv"] = csv_bytes(frame)
        if len(plain.rows) <= MOST_LATEX_ROWS:
            caption = f"{measure.title}, {ds.attrs['model']} ({source_of(measure)})."
            files[f"tables/{stem}.tex"] = plain.latex(caption, stem)
    return files, shown


def source_of(measure: Measure) -> str:
    """Return "SPARCOM, eq. 10", or "our measure" of one that the paper does not have."""
    return "our measure" if measure.equation == OURS else measure.equation
