"""The report and the figures: self-contained, safe, and true to the numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparcom_analysis import Metrics, analyze
from sparcom_analysis.figures import neurons as figures
from sparcom_analysis.findings import neurons as findings
from sparcom_analysis.schema.metrics import CategoryMatrix, LayerMeans

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Collects what a browser would load, and whether tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report(typical, tmp_path: Path) -> str:  # type: ignore[no-untyped-def]
    """The report of the typical archive."""
    return analyze(typical.archive, tmp_path).report.read_text(encoding="utf-8")


def test_the_report_loads_nothing(report: str) -> None:
    """Everything is in the file: no address is fetched by tags or styles, no script runs, and tags nest."""
    page = Page(report)
    assert page.open == []
    assert len([load for load in page.loads if load.startswith("data:image/svg+xml;base64,")]) == 6
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert all(f'id="{load[1:]}"' in report for load in page.loads if load.startswith("#"))
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?://", report)


def test_every_figure_has_its_sentence_and_a_text_for_the_blind(report: str) -> None:
    """Each figure comes with a caption, and the caption is in its alternative text."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report, re.DOTALL)
    alternatives = re.findall(r'alt="(.*?)"', report, re.DOTALL)
    assert len(captions) == len(alternatives) == 6
    assert all(len(caption) > 40 and caption in text for caption, text in zip(captions, alternatives, strict=True))


def test_caveats_and_definitions_are_there(report: str) -> None:
    """The report warns of prompt length and of self pairs, and names the equation of every measure."""
    for text in ("Prompt length is mixed in", "The diagonal", "equation 6", "equation 7", "equation 10", "figure 5"):
        assert text in report


def test_names_cannot_inject(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A category that looks like HTML or like mathematics is shown as it is written."""
    name = "<script>alert(1)</script>$\\frac"
    case = make_case((3, 4, 5), (name, name, "$x$ 50%"))
    report = analyze(case.archive, tmp_path).report.read_text(encoding="utf-8")
    assert "<script" not in report
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$\\frac" in report


def test_response_rows_are_announced(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Where other rows than the paper's were counted, the report says so at the top."""
    case = make_case((3, 4), "ab", positions="response", responses=(4, 5))
    report = analyze(case.archive, tmp_path).report.read_text(encoding="utf-8")
    assert "Frequencies are counted over <strong>response tokens</strong>" in report
    assert "the archive holds no prompt rows" in report


def with_numbers(typical, tmp_path: Path, matrix: list[list[float]], mean_count: list[list[float]]) -> Metrics:  # type: ignore[no-untyped-def]
    metrics = analyze(typical.archive, tmp_path).metrics
    part = CategoryMatrix(categories=["A", "B", "C"], matrix=matrix)
    layers = LayerMeans(categories=["A", "B", "C"], layer_ids=[2, 5, 9], mean_count=mean_count)
    return metrics.model_copy(update={"isn_similarity_without_self": part, "isn_by_layer": layers})


def test_sentences_state_the_numbers(typical, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Means, extremes and their names are those of the matrices."""
    metrics = with_numbers(
        typical,
        tmp_path,
        [[0.5, 0.1, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.7]],
        [[1.0, 2.0, 7.0], [1.0, 4.0, 5.0], [1.0, 6.0, 3.0]],
    )
    assert findings.similarity_sentence(metrics) == (
        "In random, two different instructions of the same category overlap in their ISNs by 0.600 on average (Jaccard "
        "index, mean over categories), instructions of two different categories by 0.200. The two categories most "
        "alike are B and C (0.300); the two least alike are A and B (0.100). Instructions resemble each other most "
        "within C (0.700), least within A (0.500). The diagonal of the figure counts each "
        "instruction with itself as well."
    )
    assert findings.layer_sentence(metrics) == (
        "In random, layer 9 holds the most ISNs of an instruction: 5.0 of its 20 neurons (25.0%), mean over "
        "categories. The lower, middle and upper third of the layers (1, 1 and 1 layers) hold 10%, 40% and 50% of "
        "them. Categories differ most in 2 layers, in layer 5 from 2.0 (A) to 6.0 (C)."
    )


def test_the_report_says_how_far_lengths_differ(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The caveat on prompt length comes with this archive's numbers, and without them where there is one category."""
    case = make_case((3, 5, 10), "aab")
    expected = "Here the mean length goes from 4.0 tokens (a) to 10.0 (b), 2.5 times as many."
    assert expected in analyze(case.archive, tmp_path).report.read_text(encoding="utf-8")
    one = analyze(make_case((3, 5), "aa").archive, tmp_path).metrics
    assert findings.length_sentence(one) == ""


@pytest.mark.parametrize(("count", "layers"), [(1, 1), (2, 30), (6, 80), (7, 2), (8, 1), (8, 80), (25, 30), (60, 2)])
def test_figures_take_any_size(count: int, layers: int) -> None:
    """From one category and one layer to many, both figures are drawn without a warning."""
    names = [f"category {index} with a long name" for index in range(count)]
    rows = [[None if i == j and count == 2 else (i + j) / (2 * count) for j in range(count)] for i in range(count)]
    similarity = figures.similarity_figure(CategoryMatrix(categories=names, matrix=rows), "model", self_pairs=False)
    means = [[float(index + layer) for layer in range(layers)] for index in range(count)]
    by_layer = LayerMeans(categories=names, layer_ids=list(range(layers)), mean_count=means)
    for figure in (similarity, figures.layer_figure(by_layer, "model")):
        assert figures.to_svg(figure).startswith(b"<?xml")


def test_lines_differ_in_colour_and_marker() -> None:
    """No two lines share colour or marker, so that they are told apart without colour."""
    count = len(figures.COLOURS)
    part = LayerMeans(categories=list("abcdefg")[:count], layer_ids=[0, 1], mean_count=[[1.0, 2.0]] * count)
    lines = figures.layer_figure(part, "m").axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == count
