"""Token counts equal those of the model's own tokenizer, and length matching is optimal."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.build.lengths import count_tokens, match_lengths

MODEL = Path("models/smollm2-135m-instruct")
TEXTS = [
    "Say hello.",
    "",
    " \n\t",
    "Grüße, 请把这句话翻译成英文! 🙂‍↔️",
    "def f(x):\n    return x**2\n",
    "word " * 10_000,
    "<|im_start|>user",
]

LENGTHS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=2, max_size=3)
TOLERANCES = st.one_of(st.just(0.0), st.floats(0, 0.5), st.sampled_from([0.1, 0.2, 0.25, 0.5]))


def agree(lengths: tuple[int, ...], tolerance: float) -> bool:
    """Return whether the longest exceeds the shortest by at most this share of it."""
    excess = max(lengths) - min(lengths)
    return excess == 0 or (min(lengths) > 0 and excess / min(lengths) <= tolerance)


def most_groups(lengths: list[list[int]], tolerance: float) -> int:
    """Return the maximum number of groups by brute force: try every partner of the first category's first item."""
    first, *others = lengths
    if not all(lengths):
        return 0
    item, *rest = first
    best = most_groups([rest, *others], tolerance)
    for chosen in product(*(range(len(other)) for other in others)):
        if agree((item, *(other[index] for other, index in zip(others, chosen, strict=True))), tolerance):
            left = [other[:index] + other[index + 1 :] for other, index in zip(others, chosen, strict=True)]
            best = max(best, 1 + most_groups([rest, *left], tolerance))
    return best


@settings(max_examples=150)
@example([[100], [115]], 0.15)  # 100 · 1.15 rounds to less than 115
@example([[100, 50], [129, 64]], 0.29)
@example([[2, 3], [3], [4]], 0.5)  # the 2 is dropped, the 3 beside it is kept
@example([[], [1]], 0.0)
@given(LENGTHS, TOLERANCES)
def test_no_choice_keeps_more(lengths: list[list[int]], tolerance: float) -> None:
    """Matching keeps as many items as the best choice, and is within the tolerance at every rank."""
    named = dict(zip("abc", lengths, strict=False))
    kept = match_lengths(named, tolerance)
    chosen = {name: sorted(named[name][position] for position in positions) for name, positions in kept.items()}
    ranks = list(zip(*chosen.values(), strict=True))
    assert len(ranks) == most_groups(lengths, tolerance)
    assert all(agree(rank, tolerance) for rank in ranks)
    assert all(positions == sorted(set(positions)) for positions in kept.values())


@given(st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=4))
def test_without_tolerance_the_lengths_are_the_same(lengths: list[list[int]]) -> None:
    """At tolerance 0, every category keeps each length as often as the category with the fewest; earlier items stay."""
    named = {str(number): counts for number, counts in enumerate(lengths)}
    kept = match_lengths(named)
    common = Counter(lengths[0])
    for counts in lengths[1:]:
        common &= Counter(counts)
    for name, positions in kept.items():
        assert Counter(named[name][position] for position in positions) == common
        for position in positions:
            same = [earlier for earlier in range(position) if named[name][earlier] == named[name][position]]
            assert set(same) <= set(positions)


@pytest.mark.parametrize(
    ("lengths", "tolerance", "message"),
    [({}, 0.0, "at least one category"), ({"a": [1]}, -0.1, "at least 0 and below 1"), ({"a": [1]}, 1.0, "got 1.0")],
)
def test_impossible_matchings_are_refused(lengths: dict[str, list[int]], tolerance: float, message: str) -> None:
    """A missing category and a tolerance out of range are errors."""
    with pytest.raises(InvalidInputError, match=message):
        match_lengths(lengths, tolerance)


def test_tokens_are_counted_as_transformers_counts_them() -> None:
    """Counts equal those of the model's fast tokenizer in transformers, without special tokens and truncation."""
    transformers = pytest.importorskip("transformers")
    if not (MODEL / "tokenizer.json").exists():
        pytest.skip("the demo model is not on disk: `make test` fetches it")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        MODEL
    )  # what AutoTokenizer returns; imports in a third of the time
    expected = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS]
    counts = count_tokens(TEXTS, MODEL)
    assert counts.tolist() == expected
    assert counts.dtype == "int64"
    assert count_tokens(TEXTS, MODEL / "tokenizer.json").tolist() == expected


def small_tokenizer() -> Any:
    """Write a tokenizer with one token per word and a special token in front."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({"?": 0, "<s>": 1, "a": 2}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def test_a_tokenizer_that_cuts_and_pads_counts_whole_texts(tmp_path: Path) -> None:
    """Truncation, padding and special tokens configured in a tokenizer.json do not change a length."""
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert count_tokens(["a b c d e f", "a", ""], tmp_path).tolist() == [6, 1, 0]
    assert count_tokens([], tmp_path).shape == (0,)


@pytest.mark.parametrize("content", [None, "", "{}", json.dumps({"model": {"type": "Unheard"}})])
def test_an_invalid_tokenizer_is_refused(content: str | None, tmp_path: Path) -> None:
    """A folder without the file, and an invalid file, are errors that name it."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidInputError, match=str(tmp_path)) as caught:
        count_tokens(["a"], tmp_path)
    assert ("Give another path" if content is None else "cannot be read as a tokenizer") in str(caught.value)
