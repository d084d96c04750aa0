"""Drawing by a fixed seed: the same candidates give the same instructions, in whatever order they come.

Candidates are put in the order of SHA-256(seed, text), which no library's random generator can change, and taken in
turns from the strata (the tasks of a collection), so that no task outweighs the others. One that is a near-duplicate
of an instruction taken before, or of any text that is to be kept apart, is passed over. Of each stratum only as many
candidates are held as can be wanted, so that a source may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from sparcom_hexainst.build.sources import Candidate
from sparcom_hexainst.check.runs import RunIndex, word_runs

_SPARE = 20  # near-duplicates passed over for each one taken; a template with a thousand fillings needs many
Keyed = tuple[bytes, Candidate]


def draw(candidates: Iterable[Candidate], items: int, seed: int, apart: Sequence[str] = ()) -> list[Candidate]:
    """At most `items` candidates, no two of them near-duplicates of one another or of a text in `apart`."""
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
    """`items` of candidates that somebody has chosen already, in their own order; all where there are no more."""
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
    order = sorted(strata, key=lambda name: (strata[name][0][0], name))  # two tasks may begin with the same text
    for turn in zip_longest(*(strata[name] for name in order)):
        yield from (keyed[1] for keyed in turn if keyed is not None)


def _shorten(stratum: list[Keyed], most: int) -> None:
    """Put a stratum in order, and keep its first ones."""
    stratum.sort(key=lambda keyed: keyed[0])
    del stratum[most:]


def _key(seed: int, candidate: Candidate) -> bytes:
    return hashlib.sha256(f"{seed}\0{candidate.text}\0{candidate.source}\0{candidate.id}".encode()).digest()
