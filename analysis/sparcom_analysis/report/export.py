"""A run as files for programs: metrics.json and its JSON Schema, tables; and back again.

metrics.json holds every number of a run but the lists of neurons and experts (dimension `member`). Each measure is a
Dataset as `xarray.Dataset.to_dict` gives it, with the dtype of each variable; NaN is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import OURS, Measure
from sparcom_analysis.report.facts import FORMAT_VERSION
from sparcom_analysis.report.tables import Table, for_people, measure_tables
from sparcom_data.errors import InvalidInputError

MEMBER = "member"
MOST_LATEX_ROWS = 40


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
    """Read a metrics.json back into the tree that `analyze` returned, without variables along `member`.

    Args:
        source: the file, its folder, or its bytes.

    Raises:
        InvalidInputError: it is not a metrics.json of version 3.
    """
    named = "these bytes"
    if not isinstance(source, bytes):
        path = Path(source)
        path = path / "metrics.json" if path.is_dir() else path
        named, source = str(path), path.read_bytes()
    try:
        held = json.loads(source)
        found = held.get("format_version", held.get("schema_version")) if isinstance(held, dict) else None
    except ValueError:
        found = None
    if found != FORMAT_VERSION:
        raise InvalidInputError(
            f"metrics.json must have format_version {FORMAT_VERSION}; {named} has {found}. Analyze the archives again"
        )
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), **{p: _dataset(node) for p, node in held["measures"].items()}})
    tree.attrs = {"format_version": FORMAT_VERSION, **held["attributes"]}
    return tree


def _dataset(node: dict[str, Any]) -> xr.Dataset:
    parts = {
        part: {name: (held["dims"], _array(held), _attributes(held)) for name, held in node[part].items()}
        for part in ("coords", "data_vars")
    }
    return xr.Dataset(parts["data_vars"], parts["coords"], _attributes(node))


def _array(held: dict[str, Any]) -> Any:
    if held["dtype"].startswith("float"):  # None becomes NaN
        return np.array(held["data"], dtype=object).astype(held["dtype"])
    return np.array(held["data"], dtype=held["dtype"])


def _attributes(held: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in held["attrs"].items()}


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

    def record(properties: dict[str, Any], optional: tuple[str, ...] = (), **further: Any) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        return {"type": "object", "properties": properties, "required": required, **further}

    text, anything, strings = {"type": "string"}, {"type": "object"}, {"type": "array", "items": {"type": "string"}}
    variables = {"type": "object", "additionalProperties": {"$ref": "#/$defs/variable"}}
    instructions = record({name: {"type": "integer"} for name in ("total", "used", "tokens")})
    missing = record({"measure": text, "reason": text}, additionalProperties=False)
    attributes = {
        "archive": record({"name": text, "model": text, "model_name": text, "format_version": {"type": "integer"}}),
        "tuned": anything,
        "settings": record({"rule": text, "positions": {"enum": ["prompt", "response", "all"]}}),
        "versions": {"type": "object", "additionalProperties": text},
        "instructions": instructions,
        "categories": strings,
        "warnings": strings,
        "not_computed": {"type": "array", "items": missing},
    }
    variable = {"dims": strings, "dtype": text, "attrs": anything, "data": True}
    measure_attributes = record({"measure": text, "title": text, "equation": text, "model": text})
    node = {"dims": anything, "attrs": measure_attributes, "coords": variables, "data_vars": variables}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metrics.json of SPARCOM",
        "$defs": {
            "variable": record(variable, description="NaN is null.", additionalProperties=False),
            "measure": record(node, description="As xarray.Dataset.to_dict.", additionalProperties=False),
        },
        **record(
            {
                "format_version": {"const": FORMAT_VERSION},
                "attributes": record(attributes, ("tuned",)),
                "measures": {"type": "object", "additionalProperties": {"$ref": "#/$defs/measure"}},
            },
            additionalProperties=False,
        ),
    }
    return f"{json.dumps(schema, indent=1)}\n".encode()


def table_files(path: str, measure: Measure, ds: xr.Dataset) -> tuple[dict[str, bytes], dict[str, Table]]:
    """Return the CSV and LaTeX files of a measure's tables, and by name the tables as a person reads them."""
    files: dict[str, bytes] = {}
    shown: dict[str, Table] = {}
    for name, table in measure_tables(measure, ds).items():
        part = name.removeprefix(measure.name).strip("-_ ")
        stem = path.replace("/", "-") + (f"-{part}" if part else "")
        plain = table if name else for_people(ds, table)
        shown[stem] = table if name else for_people(ds, table, intervals=True)
        files[f"tables/{stem}.csv"] = table.csv()
        if len(plain.rows) <= MOST_LATEX_ROWS:
            caption = f"{measure.title}, {ds.attrs['model']} ({source_of(measure)})."
            files[f"tables/{stem}.tex"] = plain.latex(caption, stem)
    return files, shown


def source_of(measure: Measure) -> str:
    """Return "SPARCOM, eq. 10", or "our measure" of one that the paper does not have."""
    return "our measure" if measure.equation == OURS else measure.equation
