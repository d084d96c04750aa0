"""metrics.json: valid against its schema, and read back without loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr

from sparcom_analysis import read_metrics, similarity
from sparcom_analysis.isn import find_isns
from sparcom_analysis.report.export import json_schema, metrics, nodes, to_json
from sparcom_data.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("registry")


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_run_is_read_back_without_loss(runs: dict[str, xr.DataTree], kind: str) -> None:
    """Everything but member ids is restored: variables, dtypes, attributes and NaN. Writing it again gives the same
    bytes.
    """
    run = runs[kind]
    data = to_json(run)
    found = read_metrics(data)
    assert found.attrs == json.loads(json.dumps(run.attrs))
    assert {node.path for node in found.subtree} == {node.path for node in run.subtree}
    for path, _, ds in nodes(run):
        kept = ds.drop_vars("member_layer", errors="ignore")
        xr.testing.assert_identical(found[path].to_dataset(inherit=False), kept)
        assert {name: held.dtype.kind for name, held in found[path].variables.items()} == {
            name: held.dtype.kind for name, held in kept.variables.items()
        }
    assert to_json(found) == data


def test_json_has_null_for_nan_and_no_members(runs: dict[str, xr.DataTree]) -> None:
    """A missing value is null, never NaN; variables along `member` are left out."""
    held = json.loads(to_json(runs["dense"]), parse_constant=pytest.fail)
    curves = held["measures"]["curves"]
    assert curves["data_vars"]["value"]["data"][0] == [0.25, None, 0.125]
    assert "member_layer" not in curves["data_vars"]
    assert set(curves["dims"]) == {"category", "layer"}


def test_numbers_are_those_of_the_functions(archives: dict[str, Path], runs: dict[str, xr.DataTree]) -> None:
    """metrics.json equals the results of the public functions with the same options."""
    ds = similarity(find_isns(archives["moe-base"], n_resamples=20, n_permutations=20, seed=3, top=0.2))
    held = metrics(runs["moe"])["measures"]["similarity"]["data_vars"]
    for name in ("value", "ci_low", "pvalue_adjusted"):
        assert held[name]["data"] == ds[name].values.tolist()


def test_metrics_fit_the_schema(runs: dict[str, xr.DataTree]) -> None:
    """metrics.json is valid against its JSON Schema; the schema rejects invalid files."""
    jsonschema = pytest.importorskip("jsonschema")
    raw, schema = json.loads(to_json(runs["moe"])), json.loads(json_schema())
    jsonschema.validate(raw, schema)
    broken = {**raw["measures"]["curves"], "coords": {"layer": 1}}
    for wrong in ({**raw, "format_version": 2}, {**raw, "unknown": 1}, {**raw, "measures": {"curves": broken}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("data", [b"not JSON", b"[]", b'{"schema_version": 2}', b'{"format_version": 3}'])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    """Other files raise an error with their name and the remedy."""
    (tmp_path / "metrics.json").write_bytes(data)
    for source in (data, tmp_path / "metrics.json", str(tmp_path)):
        with pytest.raises(InvalidInputError, match=r"must have format_version 3 .*Analyze the archives again"):
            read_metrics(source)
    with pytest.raises(InvalidInputError, match=r"metrics\.json does not"):
        read_metrics(tmp_path)


def test_labels_are_as_in_the_archive(runs: dict[str, xr.DataTree]) -> None:
    """Category labels are not escaped in metrics.json."""
    held = metrics(runs["dense"])
    assert held["attributes"]["categories"] == held["measures"]["similarity"]["coords"]["category"]["data"]
    assert held["attributes"]["categories"] == ["a|<b>", "$x_&"]
