"""Word runs: `RunIndex` skips comparisons, but its result equals a comparison of all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sparcom_hexainst.check.runs import NEAR, RUN, Pair, RunIndex, near_duplicates, word_runs, words

# A small vocabulary, so that texts share runs; some texts are empty or shorter than a run.
TEXTS = st.lists(
    st.one_of(
        st.lists(st.sampled_from("abc"), max_size=14).map(" ".join),
        st.text(alphabet="ab 我们.\n", max_size=16),
    ),
    max_size=12,
)
# Shares that pairs of short texts can have are the edge cases.
SHARES = st.one_of(
    st.floats(0.1, 1), st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: min(pair) / max(pair))
)


def plain_runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs by the definition, in a loop."""
    found = words(text)
    if not found:
        return {(text.strip(),)}
    if len(found) < RUN:
        return {tuple(found)}
    return {(found[i], found[i + 1], found[i + 2], found[i + 3]) for i in range(len(found) - 3)}


def all_pairs(texts: list[str], near: float) -> list[Pair]:
    """Return all pairs by the definition: every text with every other."""
    runs = [plain_runs(text) for text in texts]
    shares = [
        Pair(i, j, len(runs[i] & runs[j]) / min(len(runs[i]), len(runs[j])))
        for i, j in combinations(range(len(texts)), 2)
    ]
    return [pair for pair in shares if pair.share >= near]


@given(TEXTS, SHARES)
def test_no_pair_is_missed_and_none_invented(texts: list[str], near: float) -> None:
    """Pairs and shares equal those of comparing all pairs, at any threshold."""
    assert near_duplicates(texts, near) == all_pairs(texts, near)


@given(TEXTS, SHARES)
def test_an_index_is_asked_from_either_side(texts: list[str], near: float) -> None:
    """Queries for one text find both shorter and longer indexed texts."""
    for position, text in enumerate(texts):
        index = RunIndex(near)
        for other in texts[:position]:
            index.add(word_runs(other))
        expected = [(pair.first, pair.share) for pair in all_pairs(texts, near) if pair.second == position]
        assert list(index.similar(word_runs(text))) == expected


@pytest.mark.parametrize(("shared", "of", "near"), [(7, 100, 0.07), (14, 50, 0.28), (55, 100, 0.55)])
@pytest.mark.parametrize("others", [0, 200])
def test_a_share_just_at_the_threshold_counts(shared: int, of: int, near: float, others: int) -> None:
    """A share equal to the threshold counts, even if its product with the number of runs is rounded up."""
    assert near * of > shared, "the product must round up"
    common = [f"c{i}" for i in range(shared + RUN - 1)]
    rest = of - shared
    sizes = {"a": rest, "b": rest + others}
    texts = [" ".join([*common, *(f"{own}{i}" for i in range(size))]) for own, size in sizes.items()]
    for first, second in (texts, texts[::-1]):
        index = RunIndex(near)
        index.add(word_runs(first))
        assert list(index.similar(word_runs(second))) == [(0, near)]


def test_a_sparse_product_finds_the_same_pairs() -> None:
    """On 300 texts assembled from common pieces, an independent matrix product finds the same pairs."""
    draw = random.Random(7)  # noqa: S311
    pieces = [" ".join(f"w{draw.randrange(400)}" for _ in range(draw.randint(2, 20))) for _ in range(120)]
    texts = [" ".join(draw.choices(pieces, k=draw.randint(1, 4))) for _ in range(300)]
    assert near_duplicates(texts) == (expected := sparse_pairs(texts))
    assert len(expected) > 100


def sparse_pairs(texts: list[str]) -> list[Pair]:
    numbers: dict[tuple[str, ...], int] = {}
    cells = [(row, numbers.setdefault(run, len(numbers))) for row, text in enumerate(texts) for run in plain_runs(text)]
    rows, columns = np.array(cells).T
    held = csr_array((np.ones(len(cells), np.int64), (rows, columns)))
    sizes = held.sum(axis=1)
    share = (held @ held.T).toarray() / np.minimum.outer(sizes, sizes)
    firsts, seconds = np.nonzero(np.triu(share >= NEAR, k=1))
    return [Pair(int(i), int(j), float(share[i, j])) for i, j in zip(firsts, seconds, strict=True)]


def test_words_are_letters_and_digits_without_case() -> None:
    """Signs and underscores separate words, case is folded (ß is ss), and CJK scripts count by character."""
    assert words("Don't STOP—snake_case, x2: Straße!") == ["don", "t", "stop", "snake", "case", "x2", "strasse"]
    assert words("请把这句话 translate をして 한국") == [*"请把这句话", "translate", *"をして", *"한국"]
    assert words("¿…? _ _ ()") == []


def test_chinese_near_duplicates_are_found() -> None:
    """A sentence without spaces is many words: two that differ in the last character are near-duplicates."""
    (pair,) = near_duplicates(["请把下面这句话翻译成英文。", "请把下面这句话翻译成德文。", "写一首关于大海的诗。"])
    assert (pair.first, pair.second) == (0, 1)


def test_short_texts_are_compared_whole() -> None:
    """Texts shorter than a run form one run: equal ones pair, others do not; texts of signs alone too."""
    assert word_runs("Say hello") == {("say", "hello")}
    texts = ["Say hello", "say, HELLO!", "hello say", "?!", " ?!\n", "!?", "1 2 3", "1 2 3 4"]
    assert [(pair.first, pair.second) for pair in near_duplicates(texts)] == [(0, 1), (3, 4)]


def test_a_text_within_a_longer_one_is_a_near_duplicate_of_it() -> None:
    """The share refers to the shorter text: a sentence within an article shares all of itself."""
    article = " ".join(f"word{i}" for i in range(200))
    assert near_duplicates([article, "word50 word51 word52 word53 word54"]) == [Pair(0, 1, 1.0)]


@pytest.mark.parametrize("near", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(near: float) -> None:
    """At threshold 0, every text would match every other; above 1, none could."""
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        RunIndex(near)
