"""The populations of an archive and the checks of their arrays."""

from __future__ import annotations

import pytest

from sparcom_analysis.archive.populations import choose_population, populations
from sparcom_analysis.frequencies import require_router
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_populations_have_the_sizes_of_their_arrays(make_moe, granularity: str) -> None:  # type: ignore[no-untyped-def]
    """Routed experts come first; N is layers × experts × neurons, and rows are those of the archive's arrays."""
    archive = make_moe(granularity=granularity).archive
    found = populations(archive)
    assert [item.name for item in found] == ["expert_neuron", "neuron", "shared_expert_neuron"]
    assert [item.total for item in found] == [2 * 6 * 12, 20, 2 * 20]
    assert [list(item.layer_ids) for item in found] == [[1, 2], [0], [1, 2]]
    assert [item.columns for item in found] == [6 * 16, 24, 24]
    for item in found:
        name = item.array(archive)
        assert name == f"{item.name}/{'count' if granularity == 'count' else 'active'}"
        assert archive.array(name).shape[1] == item.layers
        assert choose_population(archive, item.name) == item
    assert choose_population(archive) == found[0]


def test_missing_populations_are_named(make_moe, typical) -> None:  # type: ignore[no-untyped-def]
    """The error lists the available populations; an unknown name is invalid input."""
    with pytest.raises(UnsupportedArchiveError, match=r"population 'expert_neuron' .* holds neuron\. Choose 'neuron'"):
        choose_population(typical.archive, "expert_neuron")
    with pytest.raises(InvalidInputError, match=r"must be one of neuron, .*; it is 'router'"):
        choose_population(typical.archive, "router")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedArchiveError, match=r"need the top-k experts of an MoE model; .* holds neuron\."):
        require_router(typical.archive)
    assert require_router(make_moe().archive).experts == 6


def test_counts_of_too_few_instructions_are_damage(make_moe) -> None:  # type: ignore[no-untyped-def]
    """An array of counts has an entry per instruction of the table."""
    archive = make_moe(granularity="count").archive
    for column in ("id", "category", "source", "token_start", "prompt_length", "token_length", "state"):
        array = archive.instructions
        object.__setattr__(array, column, getattr(array, column)[:-1])
    with pytest.raises(DamagedArchiveError, match=r"must have shape \(9, 2, 6, 12\) .*; it has \(10, 2, 6, 12\)"):
        choose_population(archive)
