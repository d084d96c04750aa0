"""The shipped synthetic half keeps its rules: balanced, varied, clean, the same for every reader.

Set SPARCOM_NATURAL to a folder with the sources of the natural half, or with prepared files, to compare with them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, read_jsonl, text_sha256
from sparcom_hexainst.build.lengths import count_tokens
from sparcom_hexainst.build.local import find_sources
from sparcom_hexainst.build.synthetic import synthetic_files, synthetic_instructions
from sparcom_hexainst.categories import CATEGORIES, ITEMS
from sparcom_hexainst.check.check import check_files
from sparcom_hexainst.check.findings import Report
from sparcom_hexainst.check.groups import opening
from sparcom_hexainst.check.runs import LONG_RUN, RunIndex, word_runs, words

ROOT = Path(__file__).parents[4]
MODEL = Path("models/smollm2-135m-instruct")
NATURAL = "SPARCOM_NATURAL"
OPENINGS = 70
# Non-ASCII quotation marks, no-break spaces and invisible characters.
TYPOGRAPHY = re.compile("[\u2018-\u201f\u2032\u2033\u00ab\u00bb\u00a0\u202f\u200b-\u200f\ufeff]")


@pytest.fixture(scope="module")
def half() -> dict[str, list[Instruction]]:
    """The synthetic half by category, in the order of the files."""
    return {name: read_jsonl(path) for name, path in zip(CATEGORIES, synthetic_files(), strict=True)}


@pytest.fixture(scope="module")
def report() -> Report:
    pytest.importorskip("py3langid", reason="the extra `dataset` is not installed")
    return check_files(synthetic_files())


def test_the_check_finds_no_error(report: Report) -> None:
    """No rule is broken; only spelling may warn, since names may look like misspellings."""
    assert [finding for finding in report.findings if finding.rule != "spelling"] == []
    assert report.skipped == []


def test_the_spelling_checker_flags_only_names(report: Report) -> None:
    """Every reported misspelling is a name: it begins with a capital."""
    for finding in report.of("spelling"):
        flagged = re.findall(r"(?:^|, )(\w+) \(", finding.message)
        assert flagged, finding
        assert all(word[0].isupper() for word in flagged), finding


def test_every_category_has_a_hundred(half: dict[str, list[Instruction]]) -> None:
    """There are 600 items, with ids numbered within the category, in the order of the files."""
    assert {name: len(items) for name, items in half.items()} == dict.fromkeys(CATEGORIES, ITEMS)
    for name, items in half.items():
        assert [item.id for item in items] == [f"{name.lower()}-s-{n:04}" for n in range(1, ITEMS + 1)]


def test_every_item_has_its_metadata(half: dict[str, list[Instruction]]) -> None:
    """Each item records category, half, source, an open licence and the hash of its text."""
    for name, items in half.items():
        for item in items:
            assert (item.category, item.half, item.source, item.license) == (name, "synthetic", "hexainst", "CC0-1.0")
            assert item.sha256 == text_sha256(item.readable), item.id


def test_texts_are_plain(half: dict[str, list[Instruction]]) -> None:
    """Texts have no outer white space, carriage returns, tabs, non-ASCII quotation marks or hidden characters."""
    for item in (item for items in half.values() for item in items):
        text = item.text or ""
        assert text == text.strip(), item.id
        assert not re.search(r"[\r\t\x00-\x08\x0b-\x1f\x7f]| \n", text), item.id
        assert not TYPOGRAPHY.search(text), item.id


def test_beginnings_differ(half: dict[str, list[Instruction]]) -> None:
    """Every category has at least 70 distinct first three words."""
    for name, items in half.items():
        assert len({opening(item.readable) for item in items}) >= OPENINGS, name


def test_no_pair_shares_half_of_its_runs(half: dict[str, list[Instruction]]) -> None:
    """Within and across categories, no pair shares half of the shorter one's 4-word runs."""
    runs = [(item.id, word_runs(item.readable)) for items in half.values() for item in items]
    for (first, mine), (second, other) in combinations(runs, 2):
        assert 2 * len(mine & other) < min(len(mine), len(other)), (first, second)


@pytest.fixture(scope="module", params=["words", "tokens"])
def lengths(request: pytest.FixtureRequest, half: dict[str, list[Instruction]]) -> dict[str, list[int]]:
    """Lengths per category, in words and in tokens of the demo model."""
    texts = {name: [item.readable for item in items] for name, items in half.items()}
    if request.param == "words":
        return {name: [len(text.split()) for text in found] for name, found in texts.items()}
    pytest.importorskip("tokenizers")
    if not (MODEL / "tokenizer.json").exists():
        pytest.skip("the demo model is not on disk: `make test` fetches it")
    return {name: count_tokens(found, MODEL).tolist() for name, found in texts.items()}


def test_length_does_not_reveal_the_category(lengths: dict[str, list[int]]) -> None:
    """Medians lie within a factor of two, and every category has short and long items."""
    medians = [statistics.median(counts) for counts in lengths.values()]
    assert max(medians) <= 2 * min(medians)
    for name, counts in lengths.items():
        assert max(counts) >= 8 * min(counts), name


@pytest.mark.parametrize("first", [5, 10, 20, 50])
def test_the_first_few_have_similar_lengths_in_every_category(first: int, lengths: dict[str, list[int]]) -> None:
    """The first n of each category include short and long items, with about the median of all."""
    medians = {name: statistics.median(counts[:first]) for name, counts in lengths.items()}
    assert max(medians.values()) <= 2 * min(medians.values())
    for name, counts in lengths.items():
        assert max(counts[:first]) >= 4 * min(counts[:first]), name
        assert 1 / 1.35 <= medians[name] / statistics.median(counts) <= 1.35, name


def test_topics_are_the_same_in_every_category(half: dict[str, list[Instruction]]) -> None:
    """25 topics occur four times each in every category, so that topics do not reveal the category."""
    topics = {name: Counter((item.metadata or {})["topic"] for item in items) for name, items in half.items()}
    (one, *others) = topics.values()
    assert len(one) == 25
    assert set(one.values()) == {4}
    assert all(other == one for other in others)


def test_a_limit_per_category_reads_the_first_items() -> None:
    """The first n of each category come in the order of categories; too large numbers are refused."""
    items = synthetic_instructions(2)
    assert [item.id for item in items] == [f"{name.lower()}-s-000{n}" for name in CATEGORIES for n in (1, 2)]
    assert len(synthetic_instructions()) == 600
    for wrong in (0, 101):
        with pytest.raises(InvalidInputError, match=f"per category must be 1 to 100 .*; got {wrong}"):
            synthetic_instructions(wrong)


@pytest.fixture
def natural() -> list[str]:
    """Texts of the natural half's sources, if the environment variable names them."""
    folder = os.environ.get(NATURAL)
    if not folder:
        pytest.skip(f"no natural sources: set {NATURAL} to a folder with them")
    return [candidate.text for found in find_sources(Path(folder)) for candidate in found.candidates()]


def test_nothing_is_copied_from_the_natural_sources(natural: list[str], half: dict[str, list[Instruction]]) -> None:
    """No synthetic text is a near-duplicate of a natural one or shares 13 consecutive words with it."""
    index = RunIndex()
    long_runs: set[tuple[str, ...]] = set()
    for text in natural:
        index.add(word_runs(text))
        if len(words(text)) >= LONG_RUN:
            long_runs |= word_runs(text, LONG_RUN)
    assert long_runs
    for item in (item for items in half.values() for item in items):
        assert list(index.similar(word_runs(item.readable))) == [], item.id
        assert not word_runs(item.readable, LONG_RUN) & long_runs, item.id


def card() -> dict[str, Any]:
    """Return the YAML front matter of the data card."""
    yaml = pytest.importorskip("yaml")
    _, head, _ = (ROOT / "data" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(head)
    return loaded


def test_hugging_face_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: dict[str, list[Instruction]]
) -> None:
    """`datasets` loads the folder by the card's configurations; each line equals what our reader reads."""
    datasets = pytest.importorskip("datasets", reason="needs the development tools")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    loaded: list[dict[str, Any]] = []
    for config in card()["configs"]:
        splits = datasets.load_dataset(str(ROOT / "data"), config["config_name"], cache_dir=str(tmp_path))
        loaded += [row for split in splits.values() for row in split]
    assert [json.dumps(row) for row in loaded] == [
        json.dumps({name: item.model_dump()[name] for name in row})
        for row, item in zip(loaded, (item for items in half.values() for item in items), strict=True)
    ]
    assert set(loaded[0]) == {"id", "category", "half", "source", "license", "sha256", "metadata", "text"}


def test_the_data_card_matches_the_files() -> None:
    """The card's licence, language and size equal those of the files."""
    head = card()
    assert head["license"] == "cc0-1.0"
    assert head["language"] == ["en"]
    assert head["size_categories"] == ["n<1K"]
