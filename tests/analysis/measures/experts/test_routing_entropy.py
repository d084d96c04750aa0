"""Routing entropy, checked with SciPy; its sentence; its place in the run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy as scipy_entropy

import sparcom_analysis as sp
from sparcom_analysis.measures.experts.routing_entropy import entropy, plot, routing_entropy, sentences
from sparcom_data.testing import write_random_moe_archive


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> sp.ExpertCounts:
    """Counts of a random MoE archive of three categories."""
    path = tmp_path_factory.mktemp("entropy") / "a.zarr"
    write_random_moe_archive(path, experts=8, categories=["CLS", "CODE", "SUM"], per_category=4, lengths=(9, 20))
    return sp.find_ises(path)


def test_entropy_of_expert_assignments_equals_scipys(experts: sp.ExpertCounts) -> None:
    """Values per instruction equal SciPy's; categories and the total are means. All lie between 0 and log2 of the
    experts.
    """
    ds = routing_entropy(experts, n_resamples=20)
    expected = scipy_entropy(experts.counts, base=2, axis=-1)
    np.testing.assert_allclose(ds["instruction_value"], expected, atol=1e-12)
    for code, name in enumerate(experts.labels):
        np.testing.assert_allclose(
            ds["value"].sel(category=name), expected[experts.codes == code].mean(axis=0), atol=1e-12
        )
    np.testing.assert_allclose(ds["overall_value"], expected.mean(axis=0), atol=1e-12)
    assert float(ds["null_mean"]) == 3.0
    assert ((ds["ci_low"] <= ds["value"]) & (ds["value"] <= ds["ci_high"])).all()


def test_ends_of_the_scale() -> None:
    """One expert for all tokens gives 0 bits; equal use of all experts gives the maximum."""
    np.testing.assert_array_equal(entropy(np.array([[4, 0, 0, 0], [2, 2, 2, 2]], dtype=np.uint32)), [0.0, 2.0])


def test_the_sentence_names_the_extreme_layers(experts: sp.ExpertCounts) -> None:
    """The sentence gives the layers of lowest and highest entropy, with their values."""
    ds = routing_entropy(experts, n_resamples=0)
    ds["overall_value"] = ("layer", [1.25, 2.5])
    layers = ds["layer"].values
    assert sentences(ds) == [
        f"Mean routing entropy is lowest in layer {layers[0]}, 1.25 bits, and highest in layer {layers[1]}, 2.50 bits. "
        "Uniform routing gives 3.00 bits."
    ]
    assert plot(ds).get_ylabel().replace("\n", " ") == "routing entropy (bits)"
