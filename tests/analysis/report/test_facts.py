"""Root attributes of a run: archives, settings, instructions and warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from sparcom_analysis import Options, analyze, find_isns
from sparcom_analysis.report import facts
from sparcom_analysis.report.facts import instruction_facts, run_facts
from sparcom_analysis.report.page import interval_caveat, length_sentence, notes
from sparcom_data.archive import open_archive
from sparcom_data.storage import DurableStore


def facts_of(archive: Any, **changes: Any) -> dict[str, Any]:
    """Return the facts of one archive."""
    options = Options.of(None, **changes)
    isn = find_isns(archive, options)
    return run_facts([isn.archive], {isn.population.name: [isn]}, options)


def test_left_out_instructions_are_counted(make_case: Callable[..., Any]) -> None:
    """Counts of instructions and tokens by category and by reason add up to the archive's."""
    case = make_case((5, 6, 7, 8, 9), ("a", "b", "a", "c", "a"), failed=(3,), unfinished=(4,))
    isn = find_isns(case.archive)
    found = instruction_facts(isn)
    assert (found["total"], found["used"], found["tokens"]) == (5, 3, 18)
    assert found["left_out"] == {"pending": 1, "failed": 1, "cancelled": 0, "without_rows": 0, "unknown_origin": 0}
    by_category = {
        name: [one[name] for one in found["by_category"]]
        for name in ("category", "instructions", "left_out", "tokens", "mean_tokens")
    }
    assert by_category == {
        "category": ["a", "b", "c"],
        "instructions": [2, 1, 0],
        "left_out": [1, 0, 1],
        "tokens": [12, 6, 0],
        "mean_tokens": [6.0, 6.0, None],
    }
    assert [one["mean_isn"] for one in found["by_category"]] == [isn.sizes[[0, 2]].mean(), isn.sizes[1], None]


def test_settings_record_all_options(make_case: Callable[..., Any]) -> None:
    """Settings hold every option, the selection rule as text and the counted positions; all are JSON types."""
    archive = make_case((5, 6), "ab", positions="response", responses=(4, 5)).archive
    found = facts_of(archive, min_frequency=0.5, seed=7, group_by=("category", "source"))
    settings = found["settings"]
    assert (settings["positions"], settings["rule"], settings["min_frequency"]) == ("response", "p ≥ 0.5", 0.5)
    assert (settings["top"], settings["seed"], settings["group_by"]) == (None, 7, ["category", "source"])
    assert json.loads(json.dumps(found)) == found
    assert "paper counts prompt tokens" in next(notes(found))
    assert list(notes(facts_of(make_case((5, 6), "ab").archive))) == []


def test_no_local_path_is_in_the_facts(archives: dict[str, Path], runs: dict[str, xr.DataTree]) -> None:
    """Archives are named by the last part of their path."""
    assert str(archives["moe-base"].parent) not in json.dumps(runs["moe"].attrs)
    attrs = runs["moe"].attrs
    assert (attrs["archive"]["name"], attrs["tuned"]["name"]) == ("moe-base.zarr", "moe-tuned.zarr")
    assert [one["population"] for one in attrs["populations"]] == ["expert_neuron", "neuron", "shared_expert_neuron"]
    assert attrs["archive"]["moe"]["experts"] == attrs["populations"][0]["experts"]


def test_both_models_are_matched(runs: dict[str, xr.DataTree]) -> None:
    """Instructions without a counterpart are counted."""
    held = runs["dense"].attrs["comparison"]
    assert (held["matched"], held["only_base"], held["only_tuned"]) == (5, 1, 0)


def test_measures_not_computed_have_a_reason(runs: dict[str, xr.DataTree]) -> None:
    """A measure that cannot be computed has no node; the attributes hold the reason per population."""
    missing = runs["moe"].attrs["not_computed"]
    assert {one["reason"] for one in missing} == {"Such a thing needs <other> data."}
    assert [one["measure"] for one in missing] == ["impossible", "neuron/impossible", "shared_expert_neuron/impossible"]


def test_warnings_of_the_extraction_are_reported(make_case: Callable[..., Any]) -> None:
    """Warnings of the extraction are warnings of the run."""
    path = Path(make_case((5, 6), "ab").archive.path)
    group = zarr.open_group(DurableStore(path), mode="r+", use_consolidated=False)
    held: Any = group.attrs["sparcom"]
    group.attrs["sparcom"] = {**held, "warnings": ["prompts are odd"]}
    assert facts_of(open_archive(path))["warnings"] == ["The extraction of the archive warned: prompts are odd."]


def test_a_layer_without_active_neurons_is_reported(make_case: Callable[..., Any]) -> None:
    """The warning names instructions, layers and archive, at most three each."""
    case = make_case((3, 4, 5, 6), "aabb", rates=(0.0,))
    (text,) = facts_of(case.archive)["warnings"]
    assert text.startswith(
        "4 instructions have a layer without any active neuron in the archive, dense layers: 'i0' (layer 0, 1, 2), "
        "'i1' (layer 0, 1, 2), 'i2' (layer 0, 1, 2) and 1 more."
    )


def test_a_large_fraction_of_template_tokens_is_reported(make_case: Callable[..., Any], monkeypatch: Any) -> None:
    """Only more than a fifth of template tokens among the counted ones gives a warning, with numbers."""
    archive = make_case((10, 10), "ab").archive
    for written, said in ((4, False), (5, True)):
        origins = {"prompt": 20, "template": written - 1, "special": 1, "share": written / 20}
        monkeypatch.setattr(facts, "prompt_origins", lambda *_, origins=origins: origins)
        warnings = facts_of(archive)["warnings"]
        assert any("25 % of the prompt tokens of the archive (5 of 20)" in text for text in warnings) == said
        assert len(warnings) == said


def test_mean_lengths_of_categories_are_reported() -> None:
    """The sentence follows the numbers, and is empty for one category."""
    both = [{"category": name, "mean_tokens": mean} for name, mean in (("a", 4.0), ("b", 10.0), ("c", None))]
    assert length_sentence(both) == ("Here mean lengths range from 4.0 tokens (a) to 10.0 tokens (b), a ratio of 2.5.")
    assert length_sentence(both[:1]) == ""
    assert "is 4.0 tokens in every category" in length_sentence([both[0], both[0] | {"category": "d"}])


@pytest.mark.parametrize(
    ("n_resamples", "level", "needed"), [(20, 0.95, 40), (1000, 0.999, 2000), (1000, 0.99, 0), (0, 0.95, 0)]
)
def test_too_few_resamples_are_reported(n_resamples: int, level: float, needed: int) -> None:
    """If no resample can lie outside the interval, the caveat gives the required number."""
    text = interval_caveat({"n_resamples": n_resamples, "confidence_level": level})
    assert (f"needs at least {needed:,} resamples" in text) if needed else text == ""


def test_counts_of_an_archive_agree_with_numpy(archives: dict[str, Path]) -> None:
    """Mean ISNs per category are those of the sets."""
    tree = analyze(archives["dense-base"], n_resamples=0, n_permutations=0)
    isn = find_isns(archives["dense-base"])
    means = [isn.sizes[np.array(isn.names) == name].mean() for name in isn.labels]
    assert [one["mean_isn"] for one in tree.attrs["instructions"]["by_category"]] == means
