"""Draws depend only on the seed, treat the parts of a source equally, and contain no near-duplicates."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_hexainst.build import draw as module
from sparcom_hexainst.build.draw import draw, sample
from sparcom_hexainst.build.sources import Candidate
from sparcom_hexainst.check.runs import word_runs

CANDIDATES = st.lists(
    st.builds(
        lambda words, stratum, source: Candidate("QA", source, "CC0-1.0", " ".join(words), stratum),
        st.lists(st.sampled_from("abcde"), min_size=1, max_size=7),
        st.sampled_from(["", "one", "two"]),
        st.sampled_from(["s", "t"]),
    ),
    max_size=25,
)


EVER = ["161", "188", "711", "89", "405"]


def different(count: int, stratum: str = "") -> list[Candidate]:
    """Candidates that share only their first word."""
    return [Candidate("QA", "s", "CC0-1.0", f"Why {stratum}{n} is{n} so{n} old{n}?", stratum) for n in range(count)]


def near(first: str, second: str) -> bool:
    runs = word_runs(first), word_runs(second)
    return len(runs[0] & runs[1]) >= 0.5 * min(map(len, runs))


def plain_draw(candidates: list[Candidate], items: int, seed: int, apart: list[str]) -> list[Candidate]:
    """Reference draw in a few lines: everything in memory, every text compared with every other."""

    def key(one: Candidate) -> bytes:
        return hashlib.sha256(f"{seed}\0{one.text}\0{one.source}\0{one.id}".encode()).digest()

    strata = [
        sorted((one for one in candidates if one.stratum == name), key=key)
        for name in {one.stratum for one in candidates}
    ]
    strata.sort(key=lambda stratum: (key(stratum[0]), stratum[0].stratum))
    taken: list[Candidate] = []
    for turn in range(len(candidates)):
        for stratum in strata:
            if len(taken) == items:
                return taken
            if turn < len(stratum) and not any(
                near(stratum[turn].text, other) for other in [*apart, *(one.text for one in taken)]
            ):
                taken.append(stratum[turn])
    return taken


@given(
    CANDIDATES, st.integers(1, 8), st.integers(0, 3), st.lists(st.sampled_from(["a b c d", "e e e e e"])), st.randoms()
)
def test_a_draw_does_not_depend_on_the_input_order(
    candidates: list[Candidate], items: int, seed: int, apart: list[str], order: random.Random
) -> None:
    """The draw equals the reference draw, in any order of candidates."""
    expected = plain_draw(candidates, items, seed, apart)
    assert draw(iter(candidates), items, seed, apart) == expected
    order.shuffle(candidates)
    assert draw(candidates, items, seed, apart) == expected


def test_seeds_differ() -> None:
    """Another seed draws other items; the same seed draws the same."""
    candidates = different(400)
    draws = [tuple(one.text for one in draw(candidates, 20, seed)) for seed in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3
    assert not set.intersection(*(set(texts) for texts in draws[:3]))


def test_a_seed_always_draws_the_same() -> None:
    """Hashes determine the order, not a random number generator, so seed 0 always draws these five."""
    assert [one.text.split()[1] for one in draw(different(1000), 5, 0)] == EVER


def test_parts_of_a_source_take_turns() -> None:
    """A task with 1,000 items gives no more items than one with 20, until the small one is used up."""
    candidates = [*different(1000, "large"), *different(20, "small"), *different(3, "tiny")]
    assert Counter(one.stratum for one in draw(candidates, 9, 0)) == {"large": 3, "small": 3, "tiny": 3}
    assert Counter(one.stratum for one in draw(candidates, 60, 0)) == {"large": 37, "small": 20, "tiny": 3}


def test_a_draw_has_no_near_duplicates() -> None:
    """Only one filling of a template is drawn, and no text near one in `apart`."""
    templates = [Candidate("QA", "s", "", f"Say in one short line what the word w{n} means.") for n in range(50)]
    drawn = draw([*templates, *different(10)], 30, 0, apart=["Why 3 is3 so3 old3? Tell me.", "Why 4 is4 so4 old4?"])
    assert sum(one in templates for one in drawn) == 1
    assert {one.text.split()[1] for one in drawn if one not in templates} == {"0", "1", "2", "5", "6", "7", "8", "9"}


def test_a_source_larger_than_memory_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3,000 candidates, at most twice the spare number are held at once, with the same result as holding all."""
    candidates = [replace(one, stratum=f"{n % 2}") for n, one in enumerate(different(3000))]
    held = []
    shorten = module._shorten

    def watched(stratum: list[module.Keyed], most: int) -> None:
        held.append(len(stratum))
        shorten(stratum, most)

    monkeypatch.setattr(module, "_shorten", watched)
    assert draw(candidates, 5, 1) == plain_draw(candidates, 5, 1, [])
    assert max(held) == 2 * module._SPARE * 5
    assert len(held) > 10


def test_a_sample_keeps_the_order_of_the_file() -> None:
    """A sample of a prepared file keeps its order and may include any item; of a short file, it takes all."""
    candidates = different(50)
    taken = sample(candidates, 20, 3)
    assert len(taken) == 20
    assert taken == [one for one in candidates if one in taken]
    assert taken != sample(candidates, 20, 4)
    assert sample(candidates, 50, 3) == sample(candidates, 99, 3) == candidates
