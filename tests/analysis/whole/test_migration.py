"""Every number of metrics.json version 2 is where the table in docs/metrics.md says, unchanged to 1e-12.

The files in tests/analysis/golden come from the last release that wrote version 2; `rebuilt` recreates their archives.
Each leaf of such a file must match a row of the table.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis import analyze, compare, read_metrics
from sparcom_analysis.measures.finetuning.venn import venn
from sparcom_analysis.report.export import to_json
from sparcom_data.testing import write_random_archive, write_random_moe_archive

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[1] / "golden"
PAGE = ROOT / "docs" / "metrics.md"
HEADING = "## From version 2 to version 3"
ROW = re.compile(r"^\| `([^`]+)` \| (?:`([^`]+)`|dropped: (.+)) \|$")
PLACE = re.compile(r"(?P<node>[\w/]*)(?P<kind>[.@])(?P<name>[\w.]+)(?:\[(?P<labels>[^]]*)\])?")
TUNED = {"top": 0.2, "n_resamples": 60, "n_permutations": 99, "seed": 3}
ALONE = {"top": 0.1, "n_resamples": 60, "n_permutations": 99, "min_share": 0.3, "self_pairs": False}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "1 - ": lambda values: 1 - values,
    "not ": lambda values: np.array([not value for value in values], dtype=object),
    "sum of ": np.sum,
    "diagonal of ": np.diagonal,
    "off diagonal of ": lambda values: np.where(np.eye(len(values), dtype=bool), np.nan, values),
    "": lambda values: values,
}
POPULATIONS = {"expert_neuron", "neuron", "shared_expert_neuron"}

Leaves = dict[tuple[str, str], list[Any]]


def expand(text: str) -> list[str]:
    """Return the texts that braces stand for: a.{b, c}.{d, e} is a.b.d, a.b.e, a.c.d, a.c.e."""
    parts = [part.split(", ") if place % 2 else [part] for place, part in enumerate(re.split(r"\{([^}]*)\}", text))]
    return ["".join(combination) for combination in itertools.product(*parts)]


def read_table(text: str) -> dict[str, str | None]:
    """Return the new place of each old field, None for one that was dropped."""
    table: dict[str, str | None] = {}
    for line in text.split(HEADING)[1].split("\n## ", maxsplit=1)[0].splitlines():
        if not line.startswith("| `"):
            continue
        found = ROW.match(line)
        assert found, f"not a row of the table: {line}"
        old = expand(found[1])
        new: list[str | None] = [None] * len(old) if found[2] is None else [*expand(found[2])]
        assert len(old) == len(new), line
        assert not table.keys() & set(old), f"twice: {line}"
        table |= dict(zip(old, new, strict=True))
    return table


def leaves(value: Any, path: str = "", population: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield field, population and value of everything in a file of version 2, lists without their indices.

    Entries of one population have the field of the whole model. Other list entries have their subject in parentheses:
    `tests.matrices(ise_correlation).p`. The subject itself is no field.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}" if path else name, population)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and "component" in value[0]:
        for item in value:
            of = item.get("measure") or ("" if item["component"] in POPULATIONS else item["component"])
            inner = "" if path == "components" else path + (f"({of})" if of else "")
            held = {name: below for name, below in item.items() if name not in ("component", "measure")}
            yield from leaves(held, inner, item["component"] if item["component"] in POPULATIONS else "")
    elif isinstance(value, list):
        if not value:
            yield path, population, []
        for item in value:
            yield from leaves(item, path, population)
    else:
        yield path, population, value


def gather(old: dict[str, Any]) -> Leaves:
    """Return the values of each field and population, in their order in the file."""
    first = old.get("component", "neuron")
    found: Leaves = defaultdict(list)
    for path, population, value in leaves({name: held for name, held in old.items() if name != "components"}):
        found[path, "" if population == first else population].append(value)
    for path, population, value in leaves({"components": old.get("components", [])}):
        if path != "components" and population != first:  # those of the first population are also at the top level
            found[path, population].append(value)
    return {key: [value for value in values if not isinstance(value, list)] for key, values in found.items()}


def resolve(run: xr.DataTree, population: str, text: str) -> list[Any]:
    """Return the values at a place, or at several, in the order of their dimensions."""
    found: list[Any] = []
    for part in text.split(" and "):
        how, place = next(((how, part.removeprefix(how)) for how in CHANGES if part.startswith(how)), ("", part))
        found += CHANGES[how](read(run, population, place)).ravel().tolist()
    return found


def read(run: xr.DataTree, population: str, text: str) -> np.ndarray[Any, Any]:
    """Return the array at a place: a variable at some labels, or an attribute."""
    found = PLACE.fullmatch(text)
    assert found, f"not a place: {text}"
    node = run[f"{population}/{found['node']}" if population else found["node"]] if found["node"] else run
    if found["kind"] == "@":
        return np.array([*entries(node.attrs, found["name"].split("."))], dtype=object)
    ds = node.to_dataset()
    labels = dict(label.split("=") for label in found["labels"].split(", ")) if found["labels"] else {}
    chosen = ds[found["name"]].sel({name: convert(ds[name].values, text) for name, text in labels.items()})
    return np.asarray(chosen.values)


def convert(values: Any, text: str) -> Any:
    """Return the label that a text stands for."""
    return next(value for value in values.tolist() if str(value) == text)


def entries(value: Any, names: list[str]) -> Iterator[Any]:
    """Yield the values at a path of names; for a list, those of each entry."""
    if isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from entries(item, names)
    elif names:
        yield from entries(value.get(names[0]), names[1:])
    else:
        yield value


def same(old: Any, new: Any) -> bool:
    """Return whether two values agree: numbers to 1e-12, null is NaN."""
    if isinstance(old, bool) or isinstance(new, bool) or isinstance(old, str):
        return bool(old == new)
    numbers = [math.nan if value is None else float(value) for value in (old, new)]
    return math.isclose(*numbers, rel_tol=1e-12, abs_tol=1e-12) or all(map(math.isnan, numbers))


def differences(old: dict[str, Any], run: xr.DataTree, table: dict[str, str | None]) -> list[str]:
    """Return one line for each old field without a row, without a new value, or with a different one."""
    found = []
    for (path, population), values in gather(old).items():
        if path not in table:
            absent = values == [None] and any(name.startswith(f"{path}.") for name in table)
            found += [] if absent else [f"no row: {path}"]
            continue
        place = table[path]
        if place is None:
            continue
        try:
            new = resolve(run, population, place)
        except KeyError as error:
            found.append(f"{path} ({population}): {place} is missing {error}")
            continue
        if len(values) != len(new) or not all(map(same, values, new)):
            found.append(
                f"{path} ({population}): {place} is {new[:4]} of {len(new)}, was {values[:4]} of {len(values)}"
            )
    return found


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recreate the archives of the golden files."""
    folder = tmp_path_factory.mktemp("golden")
    shape: dict[str, Any] = {"categories": ["CLS", "CODE", "SUM"], "per_category": 6, "lengths": (9, 24)}
    for seed, (name, failed) in enumerate((("base", ()), ("tuned", (3,)))):
        (folder / "dense").mkdir(exist_ok=True)
        (folder / "moe").mkdir(exist_ok=True)
        write_random_archive(folder / "dense" / f"{name}.zarr", neurons=40, seed=seed, failed=failed, **shape)
        write_random_moe_archive(folder / "moe" / f"{name}.zarr", experts=8, seed=seed, failed=failed, **shape)
    return folder


@pytest.mark.parametrize("name", ["dense-tuned", "dense-alone", "moe-tuned"])
def test_every_old_number_is_where_the_table_says(name: str, rebuilt: Path) -> None:
    """Each leaf of the old file has a row, and the new place holds the same value, in metrics.json too. Library
    versions are the installed ones.
    """
    kind, how = name.split("-")
    base, tuned = (rebuilt / kind / f"{which}.zarr" for which in ("base", "tuned"))
    run = analyze(base, tuned, **TUNED) if how == "tuned" else analyze(base, **ALONE)
    old = json.loads((GOLDEN / f"{name}.json").read_text())
    old["versions"] = {library: version(library) for library in old["versions"]}
    for path, part in typical(old).items():
        isn = compare(base, tuned, population=part["component"], **TUNED).isn
        run[path].ds = venn(isn, [one["id"] for one in part["instructions"]]).assign_attrs(run[path].attrs)
    assert differences(old, read_metrics(to_json(run)), read_table(PAGE.read_text())) == []


def typical(old: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return figure 6 of each population, by path. Earlier, either of two equally typical instructions was shown; now
    the first is.
    """
    parts = [old, *old.get("components", [])[1:]]
    paths = ["venn", *(f"{part['component']}/venn" for part in parts[1:])]
    return {path: part["isn_venn"] for path, part in zip(paths, parts, strict=True) if part["isn_venn"] is not None}


def small() -> tuple[dict[str, Any], xr.DataTree, dict[str, str | None]]:
    """Return an old file, a matching run, and the table between them."""
    old = {
        "component": "expert_neuron",
        "isn_size": {"mean": 2.0},
        "parts": [{"component": "neuron", "p": [[1.0, None]]}, {"component": "expert", "p": [[5.0]]}],
        "components": [
            {"component": name, "isn_size": {"mean": mean}} for name, mean in (("expert_neuron", 2.0), ("neuron", 3.0))
        ],
        "gone": 1,
        "absent": None,
    }
    run = xr.DataTree.from_dict(
        {
            "/sizes": xr.Dataset({"value": 2.0}),
            "/neuron/sizes": xr.Dataset({"value": 3.0}),
            "/neuron/p": xr.Dataset({"value": (("kind", "x"), [[0.0, 0.0], [1.0, math.nan]])}, {"kind": ["n", "y"]}),
            "/experts": xr.Dataset(attrs={"p": [5.0]}),
        }
    )
    run.attrs = {"component": "expert_neuron", "parts": [{"name": "neuron"}, {"name": "expert"}]}
    text = f"""{HEADING}
| `component` | `@component` |
| `isn_size.{{mean}}` | `sizes.{{value}}` |
| `parts.p` | `p.value[kind=y]` |
| `parts(expert).p` | `experts@p` |
| `gone` | dropped: nobody read it |
| `absent.value` | `x.value` |"""
    return old, run, read_table(text)


def test_the_comparison_finds_differences() -> None:
    """A matching run gives none; a changed number, a lost row and a lost node are each named."""
    old, run, table = small()
    assert differences(old, run, table) == []
    old["parts"][0]["p"][0][0] = 1.0 + 1e-11  # type: ignore[index]
    assert [line[:18] for line in differences(old, run, table)] == ["parts.p (neuron): "]
    old, run, table = small()
    del table["gone"]
    assert differences(old, run, table) == ["no row: gone"]
    old, run, table = small()
    assert "is missing" in differences(old, run, table | {"isn_size.mean": "other.value"})[0]


def test_rows_are_expanded_and_checked() -> None:
    """Braces stand for several fields; a malformed row, and a field with two rows, are refused."""
    assert expand("a.{b, c}.{d, e}") == ["a.b.d", "a.b.e", "a.c.d", "a.c.e"]
    for line in ("| `a` | new |", "| `{a, b}` | `c.d` |", "| `a` | `b.c` |\n| `a` | `b.c` |"):
        with pytest.raises(AssertionError):
            read_table(f"{HEADING}\n{line}")
