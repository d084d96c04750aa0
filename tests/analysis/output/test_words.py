"""The sentences of the report are true for any numbers: ties, one layer, unequal categories, small counts."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from sparcom_analysis import Analysis, Metrics, analyze, read_index_arrays
from sparcom_analysis.findings import experts as expert_findings
from sparcom_analysis.findings import neurons as findings
from sparcom_analysis.findings.alteration import layer_alteration_sentence, layer_pair_sentence
from sparcom_analysis.findings.components import components_sentence, lape_sentence
from sparcom_analysis.findings.intervals import interval_caveat
from sparcom_analysis.findings.short import in_short
from sparcom_analysis.findings.ties import largest, smallest
from sparcom_analysis.schema.metrics import CategoryMatrix, LayerMeans
from sparcom_analysis.tables.chance import chance_sentence
from sparcom_analysis.tables.formats import visible
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Of a mixture of experts with a tuned twin and three categories; tests change copies of it."""
    folder, patch = tmp_path_factory.mktemp("words"), pytest.MonkeyPatch()
    for name in ("to_png", "to_svg"):
        patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"")
    for name, seed in (("base", 0), ("tuned", 1)):
        write_random_moe_archive(folder / f"{name}.zarr", categories=("A", "B", "C"), lengths=(8, 14), seed=seed)
    made = analyze(
        folder / "base.zarr", folder / "out", tuned=folder / "tuned.zarr", resamples=20, permutations=20, share=0.4
    )
    patch.undo()
    return made


@pytest.fixture(scope="module")
def metrics(found: Analysis) -> Metrics:
    """Its numbers."""
    return found.metrics


def with_matrix(metrics: Metrics, values: list[list[float | None]]) -> Metrics:
    """The same with this similarity without pairs of an instruction with itself."""
    part = CategoryMatrix(categories=["A", "B", "C"], matrix=values)
    return metrics.model_copy(update={"isn_similarity_without_self": part})


def with_layers(metrics: Metrics, layers: list[int], values: list[list[float]]) -> Metrics:
    """The same with these ISNs by layer."""
    part = LayerMeans(categories=["A", "B", "C"], layer_ids=layers, mean_count=values)
    return metrics.model_copy(update={"isn_by_layer": part})


def test_ends_name_all_that_tie() -> None:
    """What agrees to twelve digits is one end; of many the number is said."""
    end = largest([(0.1 + 0.2, "a"), (0.3, "b"), (0.2, "c")])
    assert (end.names, end.named("categories"), end.layers) == (["a", "b"], "a and b", "layers a and b")
    low = smallest([(1.0, str(k)) for k in range(5)])
    assert (low.named("categories"), low.layers) == ("5 categories", "5 layers")


def test_sentences_of_similarity_hold_at_ties(metrics: Metrics) -> None:
    """Two pairs that are equally alike are both named, a diagonal of 1 is not called lower than the figure's."""
    tied = with_matrix(metrics, [[0.4, 0.3, 0.3], [0.3, 1.0, 0.1], [0.3, 0.1, 0.4]])
    text = findings.similarity_sentence(tied)
    assert "Most alike are the pairs A and B; A and C (0.300 each); the two least alike are B and C (0.100)." in text
    assert "most within B (1.000), least within A and C (0.400)" in text
    assert "higher" not in text
    assert "most alike are the pairs A and B; A and C (0.300 each)" in in_short(tied)[1]
    flat = findings.similarity_sentence(with_matrix(metrics, [[0.5] * 3] * 3))
    assert "All pairs of categories are equally alike (0.500)." in flat
    assert "equally within all categories (0.500)" in flat


def test_sentences_of_layers_hold_at_ties_and_of_one_layer(metrics: Metrics) -> None:
    """One layer holds neither the most nor the least; layers that tie are named together."""
    one = findings.layer_sentence(with_layers(metrics, [4], [[2.0], [2.0], [3.0]]))
    assert "the one layer holds 2.3 of its" in one
    assert one.endswith("Categories differ, from 2.0 (A and B) to 3.0 (C).")
    two = findings.layer_sentence(with_layers(metrics, [4, 7], [[2.0, 2.0]] * 3))
    assert "layers 4 and 7 hold the most ISNs of an instruction: each 2.0 of its" in two
    assert two.endswith("do not differ in any layer.")
    widest = findings.layer_sentence(with_layers(metrics, [4, 7], [[1.0, 3.0], [2.0, 4.0], [2.0, 3.0]]))
    assert "differ most in 2 layers, in layer 4 from 1.0 (A) to 2.0 (B and C)." in widest


def test_sentences_of_experts_hold_at_ties_and_of_one_layer(metrics: Metrics) -> None:
    """Shares and shifts of one layer have no most and no least."""
    top, shift, altered = metrics.top_experts, metrics.expert_shift, metrics.isn_alteration
    assert top is not None
    assert shift is not None
    assert altered is not None
    single = top.model_copy(update={"layer_ids": [3], "share": [[0.5]] * 3})
    text = expert_findings.share_sentence(metrics.model_copy(update={"top_experts": single}))
    assert text.endswith("%).")
    assert "layer 3" not in text
    moved = shift.model_copy(update={"layer_ids": [3], "moved": [[0.5]] * 3})
    assert "most in" not in expert_findings.shift_sentence(metrics.model_copy(update={"expert_shift": moved}))
    overall = altered.overall.model_copy(
        update={"layer_alteration": [0.25], "base_by_layer": [2.0], "tuned_by_layer": [3.0]}
    )
    part = altered.model_copy(update={"layer_ids": [3], "overall": overall})
    assert layer_alteration_sentence(part) == "Tuning alters the ISNs of layer 3 by 0.250, mean over instructions."
    assert layer_pair_sentence(part).startswith("The number of ISNs changes in layer 3: 2.0 of an instruction")


def test_sentences_of_components_hold_at_ties(metrics: Metrics) -> None:
    """Categories with the same number share the first place, and no category has the most of none."""
    assert metrics.lape is not None
    assert metrics.general_unique is not None
    entropy = metrics.lape.groups[0].model_copy(update={"reason": None, "selected": 2, "passed": 9, "wanted": 2})
    tied = entropy.model_copy(update={"total": [1, 1, 0]})
    assert "; A and B have the most that are specific to one category, 1 each." in lape_sentence(tied, "M")
    none = entropy.model_copy(update={"total": [0, 0, 0]})
    assert "; none of them is specific to a category." in lape_sentence(none, "M")
    nothing = entropy.model_copy(update={"selected": 0, "wanted": 0})
    assert "9 pass the filter, but the share of all neurons that LAPE takes comes to none." in lape_sentence(
        nothing, "M"
    )
    group = metrics.general_unique.groups[0]
    assert group.unique is not None
    equal = group.model_copy(update={"unique": [group.unique[0].model_copy(update={"total": 7})] * 3})
    assert " 3 categories have" not in components_sentence(equal, "M")
    assert " A, B and C have the most of their own, 7 each." in components_sentence(equal, "M")


def test_shares_and_numbers_are_not_mixed(metrics: Metrics) -> None:
    """General and unique components at the top: a number with its share, and numbers for chance."""
    part = metrics.general_unique
    assert part is not None
    group = part.groups[0]
    assert group.unique is not None
    assert group.general is not None
    assert group.shared is not None
    numbers = group.general.model_copy
    changed = group.model_copy(
        update={
            "general": numbers(update={"total": 1}),
            "shared": numbers(update={"total": 0}),
            "unique": [numbers(update={"total": count}) for count in (8, 1, 0)],
            "general_chance": 2.0,
            "unique_chance": [4.0, 3.0, 2.0],
        }
    )
    said = in_short(metrics.model_copy(update={"general_unique": part.model_copy(update={"groups": [changed]})}))
    (text,) = (sentence for sentence in said if "belong to a category" in sentence)
    assert "1 (10%) belong to all of them and 9 (90%) to one alone" in text
    assert text.endswith("; with the categories’ names shuffled it would be 2 and 9.")


def test_a_category_that_stands_out_is_not_denied(metrics: Metrics) -> None:
    """Which mean is meant is said, and where all together are no more than chance, those that are more are named."""
    assert metrics.tests is not None
    assert "mean over categories)" in findings.similarity_sentence(metrics)
    one = metrics.tests.matrices[0].model_copy(
        update={"p": 0.4, "within": 0.078, "between": 0.09, "category_p_adjusted": [0.9, 0.01, 0.9]}
    )
    part = metrics.tests.model_copy(update={"matrices": [one]})
    assert "means over all pairs of instructions, to which a larger category adds more" in chance_sentence(part, one)
    first = in_short(metrics.model_copy(update={"tests": part}))[0]
    assert "mean over all pairs of instructions" in first
    assert first.endswith(
        "no more than chance could make of it (p = 0.4000), but those of B share more than shuffled names give "
        "(p ≤ 0.05, corrected)."
    )
    plain = one.model_copy(update={"category_p_adjusted": [0.9, 0.9, None]})
    last = in_short(metrics.model_copy(update={"tests": part.model_copy(update={"matrices": [plain]})}))[0]
    assert last.endswith("no more than chance could make of it (p = 0.4000).")


def test_experts_that_tie_are_said_in_the_report(found: Analysis) -> None:
    """Which experts an instruction has, and how table 6 differs, stands beside the numbers; the share in per cent."""
    report = found.report.read_text(encoding="utf-8")
    assert "at least 40 % of the category’s instructions have it" in report
    assert "all that tie with the last of these 5 included" in report


def test_too_few_resamples_for_a_confidence_are_said(found: Analysis, metrics: Metrics) -> None:
    """Where no draw can lie beyond an end, it is said with the number that is needed; where some can, nothing is."""
    assert metrics.intervals is not None
    assert metrics.general_unique is not None
    text = interval_caveat(metrics)  # of 95 % from 20
    assert "An interval of 95 % needs 40 resamples, so that some lie beyond its ends; here are 20" in text
    assert text in found.report.read_text(encoding="utf-8")
    some = metrics.intervals.model_copy(update={"resamples": 1000, "confidence": 0.999})
    general = metrics.general_unique.model_copy(update={"resamples": 200})
    changed = metrics.model_copy(update={"intervals": some, "general_unique": general})
    assert "needs 2,000 resamples" in interval_caveat(changed)
    some = some.model_copy(update={"confidence": 0.99})
    assert interval_caveat(changed.model_copy(update={"intervals": some})) == ""
    some = some.model_copy(update={"confidence": 0.995})
    assert "general and unique components are from 200" in interval_caveat(
        changed.model_copy(update={"intervals": some})
    )


def test_characters_that_cannot_be_shown_are_replaced(tmp_path: Path) -> None:
    """Drawings stay XML, pages and tables hold no control character, and the run says nothing wrong in silence."""
    name = "a\x00b\x0bc\x1bd"
    write_random_archive(tmp_path / "a.zarr", categories=(name, "B"), per_category=2, layers=1)
    found = analyze(tmp_path / "a.zarr", tmp_path / "out", resamples=0, permutations=0, match_tokens=False)
    assert found.metrics.categories == [name, "B"]
    drawings = list((tmp_path / "out" / "figures").glob("*.svg"))
    assert drawings
    for path in drawings:
        ET.fromstring(path.read_bytes())  # noqa: S314  (our own file)
    for path in (
        found.report,
        *(tmp_path / "out" / "tables").glob("*.md"),
        *(tmp_path / "out" / "tables").glob("*.tex"),
    ):
        text = path.read_text(encoding="utf-8")
        assert visible(text) == text
    assert "a\ufffdb" in found.report.read_text(encoding="utf-8")
    names, lists = read_index_arrays(tmp_path / "out" / "lists" / "belonging-neuron.npz")
    assert (len(names), [len(own) for own in lists]) == (2, [1, 1])
