"""Draw instructions by seed: the same candidates give the same instructions, in any order of input.

Candidates are sorted by SHA-256(seed, text), which no library update can change. They are taken from the strata (the
tasks of a collection) in turn, so that no task dominates. Near-duplicates of an earlier item or a text in `apart` are
skipped. Each stratum holds only as many candidates as a draw can need, so that a source may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from sparcom_hexainst.build.sources import Candidate
from sparcom_hexainst.check.runs import RunIndex, word_runs

_SPARE = 20  # candidates held per item drawn: templates with a thousand fillings give many near-duplicates
Keyed = tuple[bytes, Candidate]


def draw(candidates: Iterable[Candidate], items: int, seed: int, apart: Sequence[str] = ()) -> list[Candidate]:
    """Return at most `items` candidates, none a near-duplicate of another or of a text in `apart`."""
    index = RunIndex()
    for text in apart:
        index.add(word_runs(text))
    taken: list[Candidate] = []
    for candidate in _in_turns(candidates, seed, _SPARE * items):
        if len(taken) == items:
            break
        runs = word_runs(candidate.text)
        if not any(index.similar(runs)):
            index.add(runs)
            taken.append(candidate)
    return taken


def sample(candidates: Sequence[Candidate], items: int, seed: int) -> list[Candidate]:
    """Return `items` of a curated list of candidates, in their original order; all if there are no more."""
    chosen = sorted(range(len(candidates)), key=lambda position: _key(seed, candidates[position]))[:items]
    return [candidates[position] for position in sorted(chosen)]


def _in_turns(candidates: Iterable[Candidate], seed: int, most: int) -> Iterator[Candidate]:
    strata: defaultdict[str, list[Keyed]] = defaultdict(list)
    for candidate in candidates:
        stratum = strata[candidate.stratum]
        stratum.append((_key(seed, candidate), candidate))
        if len(stratum) >= 2 * most:
            _shorten(stratum, most)
    for stratum in strata.values():
        _shorten(stratum, most)
    order = sorted(strata, key=lambda name: (strata[name][0][0], name))  # two tasks may share their first key
    for turn in zip_longest(*(strata[name] for name in order)):
        yield from (keyed[1] for keyed in turn if keyed is not None)


def _shorten(stratum: list[Keyed], most: int) -> None:
    """Sort a stratum and keep its first `most` candidates."""
    stratum.sort(key=lambda keyed: keyed[0])
    del stratum[most:]


def _key(seed: int, candidate: Candidate) -> bytes:
    return hashlib.sha256(f"{seed}\0{candidate.text}\0{candidate.source}\0{candidate.id}".encode()).digest()
