"""Common behavior of results per instruction: access by id, selection, groups, options and reprs."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest

from sparcom_analysis import Options, activation_counts, find_ises, find_isns
from sparcom_analysis.instructions import FIXED_OPTIONS
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.measure import facts
from sparcom_analysis.options import RENAMED
from sparcom_data.errors import InvalidInputError


@pytest.fixture
def isn(typical) -> IsnSets:  # type: ignore[no-untyped-def]
    """ISN sets of eight complete instructions; i4 failed."""
    return find_isns(typical.archive, top=0.2, pool=True)


def test_a_set_is_found_by_its_id(isn: IsnSets) -> None:
    """The labeled mask belongs to that instruction, also after a failed one."""
    for place, name in enumerate(isn.ids):
        mask = isn[name]
        assert (mask.values == isn.mask(place)).all()
        assert mask.dims == ("layer", "neuron")
        assert mask.layer.values.tolist() == [0, 1, 2]
        assert (str(mask.instruction.values), str(mask.category.values)) == (name, isn.names[place])


def test_expert_frequencies_are_found_by_id(make_moe) -> None:  # type: ignore[no-untyped-def]
    """f of one instruction, over the model's layers; ISN sets of routed experts have an expert axis."""
    archive = make_moe(failed=(1,)).archive
    counts = find_ises(archive)
    one = counts["i004"]
    assert (one.values == counts.frequencies[3]).all()
    assert (one.dims, one.layer.values.tolist()) == (("layer", "expert"), [1, 2])
    assert find_isns(archive)["i004"].dims == ("layer", "expert", "neuron")
    table = counts.to_dataframe()
    assert table.loc[("i004", 2, 5), "count"] == counts.counts[3, 1, 5]


def test_a_missing_id_is_refused(isn: IsnSets) -> None:
    """The error shows ids; a number is not an id."""
    for name in ("i4", "nothing", 0):
        with pytest.raises(InvalidInputError, match=r"not an id of these 8 instructions; ids: i0, i1, i2, "):
            isn[name]  # type: ignore[index]


def test_it_iterates_over_ids(isn: IsnSets) -> None:
    """Iteration yields ids, as for a mapping."""
    assert list(isn) == ["i0", "i1", "i2", "i3", "i5", "i6", "i7", "i8"]
    assert "i3" in isn
    assert "i4" not in isn


def test_instructions_are_selected_by_name(isn: IsnSets) -> None:
    """Selection works by category, by id, or by both; every array with an entry per instruction follows."""
    some = isn.sel(category=["QA", "(none)"])
    assert list(some) == ["i0", "i2", "i3", "i5", "i6", "i8"]
    assert list(isn.sel(category="QA", instruction=["i0", "i1"])) == ["i0"]
    places = [list(isn).index(name) for name in some]
    for name in ("instruction", "tokens", "minimum_count", "layer_counts", "dead_layers"):
        np.testing.assert_array_equal(getattr(some, name), getattr(isn, name)[places])
    assert (some["i8"].values == isn["i8"].values).all()
    assert some.labels == ["QA", "(none)"]


def test_an_unknown_name_is_refused(isn: IsnSets) -> None:
    """The error lists the existing names."""
    refused = [
        ({"category": "SUM"}, r"there is no category 'SUM' here; there are 'QA', 'CODE', '\(none\)'"),
        ({"instruction": ["i0", "i4"]}, "there is no instruction 'i4' here"),
        ({"source": "natural"}, "there is no source 'natural' here"),
        ({"category": "QA", "instruction": "i1"}, "no instruction matches all selections"),
    ]
    for wanted, reason in refused:
        with pytest.raises(InvalidInputError, match=reason):
            isn.sel(**wanted)


def test_categories_can_be_selected_in_other_groups(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Grouped by source, a category and a group are both selected by name."""
    isn = find_isns(make_moe().archive, group_by=("category", "source"))
    assert isn.labels == ["CLS / random", "CODE / random"]
    assert list(isn.sel(category="CLS")) == list(isn.sel(category="CLS / random")) == [f"i00{k}" for k in range(5)]
    assert isn.grouped(("source",)).labels == ["random"]
    assert isn.grouped(("category",)).labels == ["CLS", "CODE"]
    assert isn.sel(source="random").ids == isn.ids


def test_other_instructions_or_groups_have_no_pooled_counts(isn: IsnSets) -> None:
    """Sums over all instructions in the old groups would be wrong."""
    assert isn.pooled is not None
    assert isn.with_options(seed=3).pooled is isn.pooled
    assert isn.sel(category="QA").pooled is None
    assert isn.grouped(("source",)).pooled is None


def test_indices_may_be_in_any_order(isn: IsnSets) -> None:
    """Indices, a mask and an empty selection work; an index past the end is refused."""
    assert list(isn.take(np.array([5, 0]))) == ["i6", "i0"]
    assert list(isn.take(np.arange(8) < 2)) == ["i0", "i1"]
    assert len(isn.take(np.array([], dtype=np.intp))) == 0
    with pytest.raises(IndexError):
        isn.take(np.array([8]))


def test_options_of_resampling_may_change(isn: IsnSets) -> None:
    """Sets stay and computed pairs are reused; the original is unchanged."""
    pairs = isn.pairs
    changed = isn.with_options(n_resamples=20, seed=7)
    assert (changed.options.n_resamples, changed.options.seed, isn.options.seed) == (20, 7, 0)
    assert changed.pairs is pairs
    assert isn.with_options() is isn
    with pytest.raises(InvalidInputError, match="n_resamples must be 0"):
        isn.with_options(n_resamples=1)
    with pytest.raises(InvalidInputError, match="there is no option 'resamples'; did you mean n_resamples"):
        isn.with_options(resamples=5)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_of_options_lead_to_the_new(old: str, new: str) -> None:
    """The name of an option in an earlier release raises an error with the current name."""
    assert new in {one.name for one in fields(Options)}
    with pytest.raises(InvalidInputError, match=f"there is no option '{old}'; did you mean {new}"):
        Options.of(**{old: 0.5})


def test_one_rule_of_selection_replaces_the_other() -> None:
    """A new rule replaces the previous one; both at once are refused."""
    both = Options.of(Options.of(min_frequency=0.9), top=0.1)
    assert (both.top, both.min_frequency) == (0.1, None)
    assert Options.of(both, min_frequency=0.5).top is None
    with pytest.raises(InvalidInputError, match="pass only one of them"):
        Options.of(top=0.1, min_frequency=0.5)


def test_options_of_counting_are_fixed(isn: IsnSets) -> None:
    """Options of counting can only change with a new pass over the archive."""
    for name in FIXED_OPTIONS:
        with pytest.raises(InvalidInputError, match=f"{name} is fixed once instructions are counted"):
            isn.with_options(**{name: None})


def test_layers_are_a_labeled_array(isn: IsnSets) -> None:
    """ISNs per instruction and layer, with ids and categories."""
    layers = isn.by_layer()
    assert layers.dims == ("instruction", "layer")
    for name in isn:
        assert layers.sel(instruction=name).values.tolist() == isn[name].sum("neuron").values.tolist()
    assert layers.groupby("category").sum().sel(category="QA").values.tolist() == (
        isn.layer_counts[[0, 2, 4]].sum(axis=0).tolist()
    )


def test_the_repr_describes_the_data(isn: IsnSets, make_moe) -> None:  # type: ignore[no-untyped-def]
    """Instructions, groups, tokens, rule and sizes follow the data; plain text is not escaped."""
    sizes = isn.sizes
    assert repr(isn) == (
        "<IsnSets: 8 instructions of random; by category (QA, CODE, (none)); 57 prompt tokens; top 0.2: 12 of 60 "
        f"neurons of dense layers, mean size {sizes.mean():,.0f} ({sizes.min()} to {sizes.max()}, with ties)>"
    )
    assert repr(isn.sel(instruction="i0")).startswith("<IsnSets: 1 instruction of random; by category (QA); 5 prompt")
    assert repr(isn.take(np.array([], dtype=np.intp))).endswith("12 of 60 neurons of dense layers>")
    counts = find_ises(make_moe().archive)
    assert "6 experts, 2 per token, in 2 layers" in repr(counts)
    activated = (counts.counts > 0).sum(axis=(1, 2)).mean()
    assert f"{activated:,.0f} activated experts (ISEs) per instruction" in repr(counts)
    assert "p ≥ 0.4: 144 neurons of routed experts" in repr(find_isns(make_moe().archive, min_frequency=0.4))


def test_a_notebook_shows_escaped_html(make_case) -> None:  # type: ignore[no-untyped-def]
    """HTML characters in a category are escaped."""
    html = find_isns(make_case((5, 9), ("<b>", "a")).archive)._repr_html_()
    assert html.startswith("<b>IsnSets</b><ul")
    assert "&lt;b&gt;" in html


def test_results_can_be_compared_and_hashed(isn: IsnSets, typical) -> None:  # type: ignore[no-untyped-def]
    """`==` is identity: it never raises for arrays."""
    other = find_isns(typical.archive, top=0.2)
    assert isn == isn
    assert isn != other
    assert len({isn, other}) == 2


@pytest.mark.parametrize("wrong", ["all", 0.05, {"top": 0.05}, ["prompt"]])
def test_other_objects_in_place_of_options_are_refused(typical: Any, wrong: Any) -> None:
    """An older release took positions as third argument; other objects raise an error with the remedy."""
    measures = (Options.of, partial(find_isns, typical.archive), partial(activation_counts, typical.archive, 0))
    for measure in measures:
        with pytest.raises(InvalidInputError, match=r"must be an Options object; it is .*\. Pass single options"):
            measure(wrong)


@pytest.mark.parametrize(
    ("path", "name"), [("/data/base.zarr", "base.zarr"), ("http://host:8000/v1/archives/base/zarr", "base")]
)
def test_an_address_gives_the_name_of_its_archive(make_counts: Any, path: str, name: str) -> None:
    """The attribute `archive` of a Dataset is the folder's name, or the archive's name on its server."""
    experts = make_counts(np.array([[[1, 2]], [[2, 1]]]), [3, 3], "ab")
    experts.archive.path = path
    assert facts(experts)["archive"] == name
