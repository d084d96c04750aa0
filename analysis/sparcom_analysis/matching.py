"""Matches the instructions of a base and a fine-tuned model by id, and proves that they may be compared.

1. Neurons or experts, rule of selection and positions must be the same in both archives. Anything else is refused: a
   difference between the models would be one of the rules, not of the tuning.
2. Instructions that one archive lacks are counted, and so are matched ones that read different tokens (another
   tokenizer or prompt format) or have another category; they stay in. Archives of counts hold no token ids.
3. Where content alone was counted, two instructions of the same tokens must have the same origins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import read_column
from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.archive.populations import TITLES, populations
from sparcom_analysis.archive.rows import RowSpans, TokenFacts, row_spans
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError
from sparcom_data.schema import TOKEN_ORIGIN

Measured = TypeVar("Measured", IsnSets, ExpertCounts)


@dataclass(frozen=True, slots=True, eq=False)
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
    def names(self) -> list[str]:
        """Group of each instruction: m names, as of `category_labels`."""
        labels = category_labels(self.categories)
        return [labels[code] for code in category_codes(self.categories)]

    @property
    def different_tokens(self) -> int | None:
        """Of the m, those that read different tokens; None if that is unknown."""
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
    both = _in_both(base.ids, tuned.ids)
    left, right = (np.array([side[name] for name in both]) for side in place)
    return Matched(
        base=left,
        tuned=right,
        ids=both,
        categories=[base.categories[k] for k in left],
        only_base=len(base) - len(both),
        only_tuned=len(tuned) - len(both),
        different_lengths=int((base.tokens[left] != tuned.tokens[right]).sum()),
        different_categories=sum(base.categories[i] != tuned.categories[j] for i, j in zip(left, right, strict=True)),
        same_tokens=known.same_tokens if known and known.ids == both else _same_tokens(base, tuned, left, right),
    )


def check_models(base: Archive, tuned: Archive) -> None:
    """Refuse two archives of other layers, neurons, experts or rules of activity, before any row is read."""
    _refuse_different(_facts(base), _facts(tuned), str(base.path), str(tuned.path))


def check_instructions(base: Archive, tuned: Archive, spans: tuple[RowSpans, RowSpans]) -> None:
    """Refuse archives without the same positions or a common instruction; `spans` are their counted rows."""
    positions = [{"positions": one.positions} for one in spans]
    _refuse_different(positions[0], positions[1], str(base.path), str(tuned.path))
    left, right = ([a.instructions.id[k] for k in s.instruction] for a, s in zip((base, tuned), spans, strict=True))
    _in_both(left, right)


def _in_both(base: Sequence[str], tuned: Sequence[str]) -> list[str]:
    """Return the ids that both have, in the order of the base."""
    held = set(tuned)
    if both := [name for name in base if name in held]:
        return both
    raise IncompleteArchiveError(
        "base and tuned are compared over instructions of the same id that are complete in both archives; there is "
        f"none (of {len(base)} and {len(tuned)}). Extract the same instructions with both models"
    )


def _rules(measured: IsnSets | ExpertCounts) -> dict[str, str]:
    """Return what must be the same, in words."""
    found = {"positions": measured.positions, "tokens": _counted(measured.token_facts)}
    if isinstance(measured, ExpertCounts):
        shape = f"{measured.experts} experts, {measured.top_k} per token, in layers {list(measured.layer_ids)}"
        return {"experts": shape} | found
    part = measured.population
    shape = f"{part.title}, {part.experts} x {part.neurons} neurons in layers {list(part.layer_ids)}"
    return {"population": shape, "selection": measured.options.rule} | found


def _counted(facts: TokenFacts) -> str:
    """Return which tokens counted. Special ids may differ: where that matters, T differs too."""
    special = f"special tokens {'counted' if facts.special_tokens == 'count' else 'left out'}"
    special = special if facts.counted_tokens == "all" else f"content alone, {special}"
    return special if facts.drawn is None else f"{special}, {facts.drawn} drawn with seed {facts.seed}"


def _facts(archive: Archive) -> dict[str, str]:
    """Return what must be the same of two archives, in words; "none" where one lacks it."""
    capture, moe = archive.attributes.capture, archive.moe
    found = dict.fromkeys((*TITLES.values(), "router"), "none")
    for part in populations(archive):
        found[part.title] = f"{part.experts} x {part.neurons} neurons in layers {list(part.layer_ids)}"
    if moe is not None and "router" in capture.components:
        found["router"] = f"{moe.experts} experts, {moe.experts_per_token} per token, in layers {moe.layer_ids}"
    return found | {"predicate": capture.predicate}


def _refuse_different(left: Mapping[str, str], right: Mapping[str, str], one: str, other: str) -> None:
    if wrong := [name for name in left if left[name] != right[name]]:
        differ = "; ".join(f"{name}: {left[name]} in {one}, {right[name]} in {other}" for name in wrong)
        raise UnsupportedArchiveError(
            "a base and a tuned model must have the same neurons and experts, selected by the same rule from the same "
            f"positions; these differ ({differ}). Give archives of a model and of its own tuned version, and the same "
            "settings for both"
        )


def _places(measured: IsnSets | ExpertCounts, side: str) -> dict[str, int]:
    """Return the place of each instruction by its id."""
    if len(set(measured.ids)) < len(measured.ids):
        name, count = Counter(measured.ids).most_common(1)[0]
        raise DamagedArchiveError(
            f"instruction ids of an archive must be distinct; {name!r} occurs {count} times in {side}. Run `sparcom "
            "verify`, then extract the archive again"
        )
    return {name: k for k, name in enumerate(measured.ids)}


def _same_tokens(
    base: Measured, tuned: Measured, left: NDArray[np.intp], right: NDArray[np.intp]
) -> NDArray[np.bool_] | None:
    """Return whether the token ids of every two instructions are the same: bool (m,). None for archives of counts."""
    if any(side.archive.granularity == "count" for side in (base, tuned)):
        return None

    def equal(name: str) -> NDArray[np.bool_]:
        columns = _values(base, left, name), _values(tuned, right, name)
        return np.array([np.array_equal(one, other) for one, other in zip(*columns, strict=True)], dtype=np.bool_)

    same = equal("token/id")
    content_alone = base.token_facts.counted_tokens == "content"
    if content_alone and (differ := np.flatnonzero(same & ~equal(TOKEN_ORIGIN.name))).size:
        raise UnsupportedArchiveError(
            "where content alone is counted, tokens that are the same in both archives must have the same origin; "
            f"those of {len(differ)} instructions differ, the first is {base.ids[left[differ[0]]]!r}. Extract both "
            "archives with the same prompt format, or use counted_tokens='all' (--tokens all)"
        )
    return same


def _values(side: Measured, places: NDArray[np.intp], name: str) -> list[NDArray[Any]]:
    """Return the values of a column of the token axis, one array for each instruction at these places."""
    instruction, spans = side.instruction[places], row_spans(side.archive, side.positions)
    spans = spans.only(np.isin(spans.instruction, instruction))
    held = np.split(read_column(side.archive, spans, name), spans.first[1:])
    return [held[k] for k in np.searchsorted(spans.instruction, instruction)]
