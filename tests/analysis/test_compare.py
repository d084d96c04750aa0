"""`compare`, its Comparison, and the notes on differences other than tuning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_analysis import compare
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive

Change = Callable[[dict[str, Any]], None]


def attributes(path: Path, change: Change) -> None:
    """Change the attributes of an archive."""
    file = path / "zarr.json"
    held = json.loads(file.read_text())
    change(held["attributes"]["sparcom"])
    file.write_text(json.dumps(held))


def tokenizer(letter: str) -> Change:
    """Return a change to another tokenizer."""
    return lambda held: held["model"].update(tokenizer_sha256=letter * 64)


def notes_of(base: Path, tuned: Path) -> list[str]:
    return compare(base, tuned, n_resamples=0, n_permutations=0).notes


def test_a_tuned_version_without_other_differences_has_no_notes(tmp_path: Path) -> None:
    """The same instructions, tokens, tokenizer and format give no notes."""
    for name in ("base", "tuned"):
        write_random_archive(tmp_path / f"{name}.zarr")
        attributes(tmp_path / f"{name}.zarr", tokenizer("e"))
        attributes(tmp_path / f"{name}.zarr", lambda held: held.update(state="complete"))
    assert notes_of(tmp_path / "base.zarr", tmp_path / "tuned.zarr") == []


def test_every_difference_besides_the_tuning_has_a_note(tmp_path: Path) -> None:
    """Notes report another architecture, tokenizer or format, a running extraction, other tokens, and other
    categories.
    """
    base, tuned = tmp_path / "base.zarr", tmp_path / "tuned.zarr"
    write_random_archive(base)
    write_random_archive(tuned, seed=1, categories=("CLS", "X"), failed=(0,))
    attributes(base, tokenizer("e"))
    for change in (
        tokenizer("f"),
        lambda held: held["model"].update(architecture="Other"),
        lambda held: held["capture"].update(prompt_format="chat", add_special_tokens=False),
        lambda held: held.update(state="open"),
    ):
        attributes(tuned, change)
    different = compare(base, tuned, n_resamples=0).isn.matched.different_tokens
    assert different is not None
    assert different > 0
    assert notes_of(base, tuned) == [
        "The architectures differ: RandomForTests (base), Other (tuned).",
        "The models have different tokenizers.",
        "The prompt formats differ: raw (base), chat (tuned).",
        "Only one model's prompts have added special tokens.",
        "The extraction of the tuned archive was still running: 9 of its 10 instructions are complete.",
        f"{different} of the 9 matched instructions have different tokens in the two archives. This contributes to the "
        "difference between the models.",
        "5 of the 9 matched instructions have another category in the tuned archive; the analysis uses the base "
        "archive's categories.",
    ]
    attributes(tuned, lambda held: held.update(state="complete"))
    assert "The tuned archive is incomplete: 9 of its 10 instructions are complete." in notes_of(base, tuned)


@pytest.mark.parametrize("seed", [0, 1])
def test_archives_of_counts_hold_no_tokens(tmp_path: Path, seed: int) -> None:
    """A note reports that token ids cannot be compared, and different lengths. An unnamed tokenizer is unknown."""
    base, tuned = tmp_path / "base.zarr", tmp_path / "tuned.zarr"
    write_random_archive(base)
    write_random_archive(tuned, granularity="count", seed=seed)
    notes = notes_of(base, tuned)
    assert "Token ids were not compared: archives of counts hold none." in notes
    assert "The models have different tokenizers." not in notes
    assert any("different numbers of tokens" in one for one in notes) == bool(seed)


def test_a_comparison_gives_every_measure(make_moe: Any) -> None:
    """`compare` takes paths and options like `find_isns`; each method returns its Dataset with the changed options."""
    base, tuned = make_moe().archive, make_moe(seed=1, failed=(2,)).archive
    found = compare(str(base.path), tuned, top=0.2, population="neuron", n_resamples=20, n_permutations=9)
    assert found.isn.base.population.name == "neuron"
    assert repr(found).startswith("<Comparison: random and random; 9 matched instructions; ")
    assert f"mean Jaccard {np.nanmean(found.isn.jaccard):.3f}" in repr(found)
    for ds in (found.jaccard(), found.layers(), found.routing_correlation(), found.routing_shift()):
        assert ds.attrs["instructions"] == 9
        assert "ci_low" in ds
    assert "ci_low" not in found.jaccard(n_resamples=0)
    assert found.venn("i001").attrs["typical"] is False
    assert found.venn().attrs["typical"] is True


def test_dense_models_have_no_experts_to_compare(typical: Any) -> None:
    """The error names the rule; all neuron measures work."""
    found = compare(typical.archive, typical.archive, n_resamples=0)
    assert float(found.jaccard()["overall_value"]) == 1
    for method in (found.routing_correlation, found.routing_shift):
        with pytest.raises(InvalidInputError, match="these models have no router"):
            method()
    found.isn.__dict__["shared"] = nothing = np.zeros((len(found.isn), 3), dtype=np.int64)
    object.__setattr__(found.isn.base, "layer_counts", nothing)
    object.__setattr__(found.isn.tuned, "layer_counts", nothing)
    assert repr(found).endswith("no ISNs>")
