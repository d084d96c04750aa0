"""Datasets, sentences, figures and tables of general and unique neurons and experts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis.ise import find_ises
from sparcom_analysis.isn import find_isns
from sparcom_analysis.measures.general_unique.general_unique import (
    EXPERTS,
    MEASURE,
    MOST_USED,
    ONE_CATEGORY,
    general_unique,
)
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Three categories of five instructions; one label has characters special to HTML and LaTeX."""
    path = tmp_path_factory.mktemp("members") / "A.zarr"
    write_random_moe_archive(path, categories=("b", "a|$x$", ""), per_category=5)
    return open_archive(path)


@pytest.fixture(scope="module")
def ds(archive: Archive) -> xr.Dataset:
    """`general_unique` of the routed experts' neurons."""
    return general_unique(find_isns(archive, top=0.3, n_resamples=10, n_permutations=20))


def one_category(tmp_path) -> xr.Dataset:  # type: ignore[no-untyped-def]
    """`general_unique` of an archive with one category."""
    write_random_archive(tmp_path / "A.zarr", categories=("a",))
    return general_unique(find_isns(tmp_path / "A.zarr", n_resamples=10))


def test_counts_are_those_of_the_members(ds: xr.Dataset) -> None:
    """Counts per layer and in total match the member ids; intervals contain them; fractions are their quotients."""
    category, layer, kind = (ds[f"member_{name}"].values for name in ("category", "layer", "kind"))
    for name in ds["category"].values:
        for what in ("members", "unique"):
            mine = (category == name) & ((kind == "unique") | (what == "members"))
            cell = ds.sel(kind=what, category=name)
            assert cell["layer_value"].values.tolist() == [(mine & (layer == j)).sum() for j in ds["layer"].values]
            assert cell["value"] == mine.sum()
            assert cell["ci_low"] <= cell["value"] <= cell["ci_high"]
        for what in ("general", "unique"):
            share = ((category == name) & (kind == what)).sum() / (category == name).sum()
            assert float(ds["fraction_value"].sel(fraction_kind=what, category=name)) == share
    for what in ("general", "common"):
        ids = {
            tuple(ds[f"member_{n}"].values[k] for n in ("layer", "expert", "neuron"))
            for k in np.flatnonzero(kind == what)
        }
        assert ds["overall_value"].sel(overall_kind=what) == len(ids)
        assert ds["overall_layer_value"].sel(overall_kind=what).sum() == len(ids)
    assert (ds["instructions"].values.tolist(), ds["needed"].values.tolist()) == ([5] * 3, [3] * 3)


def test_attributes_record_how_members_were_found(ds: xr.Dataset, archive: Archive) -> None:
    """Attributes hold the rule, the shares and the numbers of draws, at most 200 and 500."""
    held = {name: ds.attrs[name] for name in ("min_share", "n_resamples", "n_permutations", "per_layer", "top")}
    assert held == {"min_share": 0.5, "n_resamples": 10, "n_permutations": 20, "per_layer": 6 * 12, "top": 0.3}
    many = general_unique(find_isns(archive, population="neuron", top=0.05))
    assert (many.attrs["n_resamples"], many.attrs["n_permutations"]) == (200, 500)


def test_datasets_survive_json(ds: xr.Dataset, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Datasets with several categories and with one are read back equal."""
    for one in (ds, one_category(tmp_path)):
        xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(one.to_dict()))), one)


def test_the_first_sentence_gives_the_numbers(ds: xr.Dataset) -> None:
    """It gives the numbers of members, general ones with interval, unique ones, and both under permuted labels."""
    changed = ds.copy(deep=True)
    changed["overall_value"][:] = [1234, 66]
    changed["overall_ci_low"][:], changed["overall_ci_high"][:] = 1200, 1300
    changed["overall_null_mean"][:] = 12.4
    changed["value"].loc[{"kind": "unique"}] = [1, 0, 0]
    changed["null_mean"].loc[{"kind": "unique"}] = [2, 2, 2.5]
    assert MEASURE.sentences(changed)[0] == (
        "Of 1,301 neurons of routed experts that are members of a category (ISNs of at least 50 % of its "
        "instructions), 1,234 (95 % CI 1,200–1,300) are general (members of all 3 categories) and 1 is unique to one; "
        "permuted labels give 12 and 6.5 on average."
    )
    plain = changed.drop_vars([name for name in changed if "ci_" in str(name) or "null" in str(name)])
    assert "1,234 are general" in MEASURE.sentences(plain)[0]
    assert MEASURE.sentences(plain)[0].endswith("1 is unique to one.")
    changed["value"][:], changed["overall_value"][:] = 0, 0
    assert MEASURE.sentences(changed)[0].startswith("There are no neurons of routed experts that are members")


def test_further_sentences_give_the_numbers(ds: xr.Dataset) -> None:
    """They give the number and the names of the categories above the null after correction."""
    changed = ds.copy(deep=True)
    said = "Categories with more unique neurons than under permuted labels after correction"
    cases = (([0.01, 0.5, 0.049], "2 of 3 (b and (none))"), ([0.01, 0.5, 0.05], "1 of 3 (b)"), ([1, 1, 1], "0 of 3"))
    for adjusted, words in cases:
        changed["pvalue_adjusted"][:] = adjusted
        assert MEASURE.sentences(changed)[1:] == [f"{said}: {words}."]


def test_one_category_has_a_reason(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Members are counted and plotted. Nothing is general or unique, and the reason is given."""
    ds = one_category(tmp_path)
    members = int(ds["value"].sel(kind="members").item())
    assert members == ds.sizes["member"] > 0
    assert set(ds["member_kind"].values) == {"member"}
    assert np.isnan(ds["value"].sel(kind="unique")).all()
    assert np.isnan(ds["overall_value"]).all()
    (text,) = MEASURE.sentences(ds)
    assert text.startswith(f"Members of a among neurons: {members} (95 % CI ")
    assert text.endswith(ONE_CATEGORY)
    assert ds.attrs["reason"] == ONE_CATEGORY
    assert ONE_CATEGORY in MEASURE.caption(ds)
    assert MEASURE.figure is not None
    (ax,) = MEASURE.figure(ds).axes
    assert [bar.get_width() for bar in ax.patches] == [members]


def test_plots_show_the_numbers(ds: xr.Dataset) -> None:
    """Bars are the unique members per category; curves are general, common and unique members per layer."""
    assert MEASURE.plot is not None
    assert MEASURE.figure is not None
    figure = MEASURE.figure(ds)
    bars, general, common, unique = figure.axes[:4]
    assert MEASURE.plot(ds, bars, title="mine") is bars
    assert bars.get_title() == "mine"
    values = ds["value"].sel(kind="unique").values.tolist()
    assert [bar.get_width() for bar in bars.patches][:3] == values
    for ax, kind in ((general, "general"), (common, "common")):
        assert ax.lines[0].get_ydata().tolist() == ds["overall_layer_value"].sel(overall_kind=kind).values.tolist()
    for line, values in zip(unique.lines, ds["layer_value"].sel(kind="unique").values, strict=False):
        assert line.get_ydata().tolist() == values.tolist()
    assert "permuted labels" in MEASURE.caption(ds)


def test_tables_hold_every_number(ds: xr.Dataset) -> None:
    """Each variable except the members is in one tidy table, in the rows of its own dimensions."""
    assert MEASURE.tables is not None
    tables = MEASURE.tables(ds)
    columns = [name for table in tables.values() for name in table.columns]
    assert sorted(columns) == sorted(name for name in ds.data_vars if "member" not in ds[name].dims)
    assert tables["kind_category"].loc[("unique", "a|$x$"), "value"] == ds["value"].sel(kind="unique", category="a|$x$")
    assert len(tables["kind_category_layer"]) == 2 * 3 * 2


def test_experts_have_measures_of_their_own(archive: Archive) -> None:
    """Activated experts follow the paper's ISEs; most used experts take k from the options. Attributes and sentences
    name the kind.
    """
    counts = find_ises(archive, n_resamples=0, n_permutations=0)
    activated, used = general_unique(counts), general_unique(counts, top_experts=2, most_used=True)
    assert "activated by at least 50 %" in EXPERTS.sentences(activated)[0]
    assert "among the 2 most used of their layer in at least 50 %" in MOST_USED.sentences(used)[0]
    assert [one.attrs["measure"] for one in (activated, used)] == [EXPERTS.name, MOST_USED.name]
    xr.testing.assert_identical(MOST_USED.compute(counts, None), general_unique(counts, most_used=True))
    assert (activated.attrs["population"], used.attrs["population"]) == ("expert", "most_used_expert")
    assert (used.attrs["top_experts"], activated["value"].attrs["units"]) == (2, "experts")
    assert used["value"].sel(kind="members").sum() < activated["value"].sel(kind="members").sum()


def test_most_used_applies_to_experts_only(archive: Archive) -> None:
    """`most_used` with ISN sets raises an error before any draw."""
    with pytest.raises(InvalidInputError, match="most_used applies to experts only"):
        general_unique(find_isns(archive), most_used=True)
