"""Matches the instructions of a base and a fine-tuned model, and proves that they may be compared.

1. What was measured must be the same on both sides: the same neurons or experts, selected by the same rule from the
   same kind of rows. Anything else is refused, since a difference would be one of the rules, not of the tuning.
2. Instructions are matched by id; those that one side alone has are counted.
3. Of those matched, it is found which did not read the same tokens (another tokenizer, another prompt format): what
   differs there is in part the text. They stay in, and are counted, as are those of another category. Archives of
   counts hold no token ids, so with one of them only the number of tokens can be compared.
4. Where content alone was counted, two that read the same tokens must have the same origins; otherwise other tokens of
   them would be compared.

Knows nothing of what is then compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import TITLES, populations
from sparcom_analysis.archive.rows import RowSpans, TokenFacts, row_spans
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError
from sparcom_data.schema import TOKEN_ORIGIN
from sparcom_data.schema.metadata import Positions

Measured = TypeVar("Measured", IsnSets, ExpertCounts)

_TOKEN_IDS = "token/id"  # noqa: S105  (the name of an array)


@dataclass(frozen=True, slots=True)
class Matched:
    """The m instructions that both models have, in the order of the base.

    Attributes:
        base, tuned: intp (m,), place of each in its side.
        ids, categories: m strings; categories are the base's.
        only_base, only_tuned: instructions that the other side lacks.
        different_lengths: of the m, those with another T. different_categories: those in another group.
        same_tokens: bool (m,), whether both read the same token ids; None if an archive does not hold them.
    """

    base: NDArray[np.intp]
    tuned: NDArray[np.intp]
    ids: list[str]
    categories: list[str]
    only_base: int
    only_tuned: int
    different_lengths: int
    different_categories: int
    same_tokens: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def different_tokens(self) -> int | None:
        """Of the m, those that did not read the same tokens; None if that cannot be known."""
        return None if self.same_tokens is None else int((~self.same_tokens).sum())


def match_instructions(base: Measured, tuned: Measured, known: Matched | None = None) -> Matched:
    """Match the instructions of a base model with those of its fine-tuned version, by id.

    Args:
        base, tuned: two `IsnSets` or two `ExpertCounts`.
        known: the match of another population of the same archives, so that token ids are not read again.

    Raises:
        UnsupportedArchiveError: population, positions or rule of selection differ, or the origins of the same tokens.
        IncompleteArchiveError: no instruction is in both.
        DamagedArchiveError: two instructions of an archive have the same id.
    """
    _refuse_different(_rules(base), _rules(tuned), "base", "tuned")
    place = [_places(base, "base"), _places(tuned, "tuned")]
    both = [name for name in base.ids if name in place[1]]
    if not both:
        raise _none_in_both(len(base), len(tuned))
    left, right = (np.array([side[name] for name in both], dtype=np.intp) for side in place)
    if known is not None and known.ids == both:
        same_tokens = known.same_tokens
    else:
        same_tokens = _same_tokens(
            (base.archive, tuned.archive), (base.instruction[left], tuned.instruction[right]), base
        )
    return Matched(
        base=left,
        tuned=right,
        ids=both,
        categories=[base.categories[k] for k in left],
        only_base=len(base) - len(both),
        only_tuned=len(tuned) - len(both),
        different_lengths=int((base.tokens[left] != tuned.tokens[right]).sum()),
        different_categories=sum(base.categories[i] != tuned.categories[j] for i, j in zip(left, right, strict=True)),
        same_tokens=same_tokens,
    )


def check_models(base: Archive, tuned: Archive) -> None:
    """Refuse two archives that cannot be of a model before and after tuning, before any row is read.

    Raises:
        UnsupportedArchiveError: layers, neurons, experts, what was captured or when a neuron counts as active differ.
    """
    _refuse_different(_facts(base), _facts(tuned), str(base.path), str(tuned.path))


def check_instructions(base: Archive, tuned: Archive, spans: tuple[RowSpans, RowSpans]) -> None:
    """Refuse two archives without the same kind of rows, or without an instruction in both, before any mask is read.

    Args:
        spans: what `counted_rows` found in each.

    Raises:
        UnsupportedArchiveError: the rows are not of the same kind.
        IncompleteArchiveError: no instruction is in both.
    """
    _refuse_different(
        {"positions": spans[0].positions}, {"positions": spans[1].positions}, str(base.path), str(tuned.path)
    )
    left, right = (
        {archive.instructions.id[k] for k in found.instruction.tolist()}
        for archive, found in zip((base, tuned), spans, strict=True)
    )
    if not left & right:
        raise _none_in_both(len(left), len(right))


def _none_in_both(base: int, tuned: int) -> IncompleteArchiveError:
    return IncompleteArchiveError(
        "base and tuned are compared over instructions of the same id that are complete in both archives; there is "
        f"none (of {base} and {tuned}). Extract the same instructions with both models"
    )


def _rules(measured: IsnSets | ExpertCounts) -> dict[str, str]:
    """What must be the same, in words."""
    if isinstance(measured, ExpertCounts):
        shape = f"{measured.experts} experts, {measured.top_k} per token, in layers {list(measured.layer_ids)}"
        return {"experts": shape, "positions": measured.positions, "tokens": _counted(measured.token_facts)}
    part = measured.population
    return {
        "population": f"{part.title}, {part.experts} x {part.neurons} neurons in layers {list(part.layer_ids)}",
        "positions": measured.positions,
        "tokens": _counted(measured.token_facts),
        "selection": measured.options.rule,
    }


def _counted(facts: TokenFacts) -> str:
    """Which tokens of the rows counted. The ids that were special may differ: where that matters, T differs too."""
    special = "special ones counted" if facts.special_tokens == "count" else "special ones left out"
    special = special if facts.counted_tokens == "all" else f"content alone, {special}"
    return special if facts.drawn is None else f"{special}, {facts.drawn} drawn with seed {facts.seed}"


def _facts(archive: Archive) -> dict[str, str]:
    """What must be the same of two archives, in words; "none" where one lacks it."""
    capture, moe = archive.attributes.capture, archive.moe
    found = dict.fromkeys((*TITLES.values(), "router"), "none")
    for part in populations(archive):
        found[part.title] = f"{part.experts} x {part.neurons} neurons in layers {list(part.layer_ids)}"
    if moe is not None and "router" in capture.components:
        found["router"] = f"{moe.experts} experts, {moe.experts_per_token} per token, in layers {moe.layer_ids}"
    return found | {"predicate": capture.predicate}


def _refuse_different(left: Mapping[str, str], right: Mapping[str, str], one: str, other: str) -> None:
    if wrong := [name for name in left if left[name] != right[name]]:
        said = "; ".join(f"{name}: {left[name]} in {one}, {right[name]} in {other}" for name in wrong)
        raise UnsupportedArchiveError(
            "a base and a tuned model are compared over the same neurons and experts, selected by the same rule from "
            f"the same kind of rows; these differ ({said}). Give archives of a model and of its own tuned version and "
            "the same settings for both"
        )


def _places(measured: IsnSets | ExpertCounts, side: str) -> dict[str, int]:
    """Where each instruction is, by its id."""
    places = {name: k for k, name in enumerate(measured.ids)}
    if len(places) < len(measured.ids):
        name, count = Counter(measured.ids).most_common(1)[0]
        raise DamagedArchiveError(
            f"instruction ids of an archive must be distinct, for they say what belongs together; {name!r} occurs "
            f"{count} times in {side}. Run `sparcom verify`, then extract the archive again"
        )
    return places


def _same_tokens(
    archives: tuple[Archive, Archive],
    instructions: tuple[NDArray[np.int64], NDArray[np.int64]],
    base: IsnSets | ExpertCounts,
) -> NDArray[np.bool_] | None:
    """bool (m,): whether the token ids of each two instructions are the same. Of content alone their origins must be,
    too."""
    rows, content = base.positions, base.token_facts.counted_tokens == "content"
    if any(archive.granularity == "count" for archive in archives):
        return None
    same = _equal(archives, instructions, rows, _TOKEN_IDS)
    if content and (differ := np.flatnonzero(same & ~_equal(archives, instructions, rows, TOKEN_ORIGIN.name))).size:
        name = archives[0].instructions.id[int(instructions[0][differ[0]])]
        raise UnsupportedArchiveError(
            "where content alone is counted, tokens that are the same in both archives must have the same origin; "
            f"those of {len(differ)} instructions differ, the first is {name!r}. Extract both archives with the same "
            "prompt format, or use --tokens all"
        )
    return same


def _equal(
    archives: tuple[Archive, Archive],
    instructions: tuple[NDArray[np.int64], NDArray[np.int64]],
    rows: Positions,
    name: str,
) -> NDArray[np.bool_]:
    """bool (m,): whether the rows of each two instructions hold the same values of a column."""
    sides = [_Column(archive, rows, name) for archive in archives]
    pairs = zip(*(chosen.tolist() for chosen in instructions), strict=True)
    return np.array([np.array_equal(sides[0].of(one), sides[1].of(other)) for one, other in pairs], dtype=np.bool_)


class _Column:
    """A column's rows of one instruction after the other, read by whole chunks of which the last are kept."""

    def __init__(self, archive: Archive, rows: Positions, name: str) -> None:
        self._archive, self._spans, self._name = archive, row_spans(archive, rows), name
        self._chunk = int(archive.array(name).chunks[0])
        self._first = 0
        self._held: NDArray[Any] = np.empty(0)

    def of(self, instruction: int) -> NDArray[Any]:
        """(T,): of one instruction, by its index in the table."""
        k = int(np.searchsorted(self._spans.instruction, instruction))
        start, stop = int(self._spans.start[k]), int(self._spans.stop[k])
        if not self._first <= start <= stop <= self._first + len(self._held):
            self._first = start - start % self._chunk
            last = min(self._archive.tokens, -(-stop // self._chunk) * self._chunk)
            self._held = self._archive.read_rows(self._name, self._first, last)
        return self._held[start - self._first : stop - self._first]
