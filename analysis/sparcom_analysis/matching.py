"""Match the instructions of a base and a fine-tuned model by id, and check that they are comparable.

1. Neurons or experts, selection rule and positions must be the same in both archives. Otherwise differences between
   the models could come from the rules instead of tuning.
2. Unmatched instructions are counted. Matched instructions with different tokens (another tokenizer or prompt format)
   or another category are counted and kept. Archives of counts hold no token ids.
3. If only content counts, two instructions with the same tokens must have the same origins.
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
    """The m instructions common to both models, in the order of the base.

    Attributes:
        base, tuned: intp (m,), index of each instruction in its side.
        ids, categories: m strings; categories are the base's.
        only_base, only_tuned: number of instructions without a counterpart.
        different_lengths, different_categories: number of matched instructions with a different T, or group.
        same_tokens: bool (m,), True if both have the same token ids; None if an archive does not hold them.
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
        """Group label of each instruction: m strings."""
        labels = category_labels(self.categories)
        return [labels[code] for code in category_codes(self.categories)]

    @property
    def different_tokens(self) -> int | None:
        """Number of matched instructions with different tokens; None if unknown."""
        return None if self.same_tokens is None else int((~self.same_tokens).sum())


def match_instructions(base: Measured, tuned: Measured, known: Matched | None = None) -> Matched:
    """Match the instructions of a base model with those of its fine-tuned version, by id.

    Args:
        base, tuned: two `IsnSets` or two `ExpertCounts`.
        known: the match of another population of the same archives, to avoid reading token ids again.

    Raises:
        UnsupportedArchiveError: population, positions, selection rule, or the origins of the same tokens differ.
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
    """Check that two archives have the same layers, neurons, experts and predicate, before reading any row."""
    _refuse_different(_facts(base), _facts(tuned), str(base.path), str(tuned.path))


def check_instructions(base: Archive, tuned: Archive, spans: tuple[RowSpans, RowSpans]) -> None:
    """Check that two archives have the same positions and a common instruction; `spans` are their counted rows."""
    positions = [{"positions": one.positions} for one in spans]
    _refuse_different(positions[0], positions[1], str(base.path), str(tuned.path))
    left, right = ([a.instructions.id[k] for k in s.instruction] for a, s in zip((base, tuned), spans, strict=True))
    _in_both(left, right)


def _in_both(base: Sequence[str], tuned: Sequence[str]) -> list[str]:
    """Return the common ids, in the order of the base."""
    held = set(tuned)
    if both := [name for name in base if name in held]:
        return both
    raise IncompleteArchiveError(
        "a comparison needs instructions with the same id that are complete in both archives; there is none (of "
        f"{len(base)} and {len(tuned)}). Extract the same instructions with both models"
    )


def _rules(measured: IsnSets | ExpertCounts) -> dict[str, str]:
    """Return the properties that must be equal on both sides, as text."""
    found = {"positions": measured.positions, "tokens": _counted(measured.token_facts)}
    if isinstance(measured, ExpertCounts):
        shape = f"{measured.experts} experts, {measured.top_k} per token, in layers {list(measured.layer_ids)}"
        return {"experts": shape} | found
    part = measured.population
    shape = f"{part.title}, {part.experts} x {part.neurons} neurons in layers {list(part.layer_ids)}"
    return {"population": shape, "selection": measured.options.rule} | found


def _counted(facts: TokenFacts) -> str:
    """Describe the tokens that count. Special ids may differ between models; any effect shows as a different T."""
    special = f"special tokens {'counted' if facts.special_tokens == 'count' else 'left out'}"
    special = special if facts.counted_tokens == "all" else f"content only, {special}"
    return special if facts.drawn is None else f"{special}, {facts.drawn} drawn with seed {facts.seed}"


def _facts(archive: Archive) -> dict[str, str]:
    """Return the archive properties that must be equal, as text; "none" for a missing part."""
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
            f"positions; these differ ({differ}). Use archives of a model and of its own tuned version, with the same "
            "settings"
        )


def _places(measured: IsnSets | ExpertCounts, side: str) -> dict[str, int]:
    """Return the index of each instruction by its id."""
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
    """Return whether matched instructions have the same token ids: bool (m,). None for archives of counts."""
    if any(side.archive.granularity == "count" for side in (base, tuned)):
        return None

    def equal(name: str) -> NDArray[np.bool_]:
        columns = _values(base, left, name), _values(tuned, right, name)
        return np.array([np.array_equal(one, other) for one, other in zip(*columns, strict=True)], dtype=np.bool_)

    same = equal("token/id")
    content_only = base.token_facts.counted_tokens == "content"
    if content_only and (differ := np.flatnonzero(same & ~equal(TOKEN_ORIGIN.name))).size:
        raise UnsupportedArchiveError(
            "if only content counts, tokens that are the same in both archives must have the same origin; those of "
            f"{len(differ)} instructions differ, the first is {base.ids[left[differ[0]]]!r}. Extract both "
            "archives with the same prompt format, or use counted_tokens='all' (--tokens all)"
        )
    return same


def _values(side: Measured, places: NDArray[np.intp], name: str) -> list[NDArray[Any]]:
    """Return the values of a column of the token axis, one array per instruction at these indices."""
    instruction, spans = side.instruction[places], row_spans(side.archive, side.positions)
    spans = spans.only(np.isin(spans.instruction, instruction))
    held = np.split(read_column(side.archive, spans, name), spans.first[1:])
    return [held[k] for k in np.searchsorted(spans.instruction, instruction)]
