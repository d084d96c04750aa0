"""Base class of results per instruction: instructions, counted tokens and groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from html import escape
from pathlib import PurePath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import NONE_LABEL, Grouped
from sparcom_analysis.archive.rows import RowSpans, TokenFacts
from sparcom_analysis.kernels.intersections import Blocks
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import PairMatrix, keep_pairs
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.metadata import Positions

_COUNTING = ("positions", "counted_tokens", "special_tokens", "special_token_ids")
FIXED_OPTIONS = (*_COUNTING, "top", "min_frequency", "group_by")  # others may change after counting

SYNTHETIC = ("hexainst", "synthetic")  # sources of the synthetic half; all other sources are natural


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PerInstruction(Grouped):
    """Results of n instructions, in submission order. Iterate over it for the ids.

    Attributes:
        archive: source archive.
        options: options of counting and selection.
        positions: counted positions: prompt, response or all.
        token_facts: tokens left out at these positions.
        instruction: int64 (n,), index in `archive.instructions`.
        ids, categories, sources: n strings each; `categories` are the groups by `options.group_by`.
        tokens: int64 (n,), T.
        without_rows: complete instructions left out because no token counted.
    """

    archive: Archive
    options: Options
    positions: Positions
    token_facts: TokenFacts
    instruction: NDArray[np.int64]
    ids: Sequence[str]
    categories: Sequence[str]
    sources: Sequence[str]
    tokens: NDArray[np.int64]
    without_rows: int

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @property
    def names(self) -> list[str]:
        """Group label of each instruction: n strings out of `labels`."""
        labels = self.labels
        return [labels[code] for code in self.codes]

    @property
    def model(self) -> str:
        """Last part of the model id."""
        return PurePath(self.archive.attributes.model.id).name

    def pair_blocks(self) -> Blocks:
        """Yield the similarity of each pair of instructions, in blocks."""
        raise NotImplementedError

    @cached_property
    def pairs(self) -> PairMatrix:
        """Values of `pair_blocks`, cached on first use; raises NotComputableError for too many instructions."""
        return keep_pairs(self.categories, self.pair_blocks())

    def place(self, instruction: str) -> int:
        """Return the index of an id among these instructions; raise InvalidInputError if it is absent."""
        if instruction in self.ids:
            return list(self.ids).index(instruction)
        raise InvalidInputError(
            f"{instruction!r} is not an id of these {len(self):,} instructions; ids: {', '.join(self.ids[:3])}, …"
        )

    def sel(
        self,
        *,
        category: str | Sequence[str] | None = None,
        source: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] | None = None,
    ) -> Self:
        """Select instructions by category, source or id. Categories are the archive's, or group labels.

        Raises:
            InvalidInputError: a name does not occur, or no instruction is left.
        """
        kept = np.ones(len(self), dtype=np.bool_)
        plain = [self.archive.instructions.category[i] or NONE_LABEL for i in self.instruction]
        columns: dict[str, list[Sequence[str]]] = {
            "category": [plain, self.names],
            "source": [self.sources],
            "instruction": [self.ids],
        }
        for (what, held), given in zip(columns.items(), (category, source, instruction), strict=True):
            if given is None:
                continue
            wanted = [given] if isinstance(given, str) else list(given)
            known = list(dict.fromkeys(name for column in held for name in column))
            if missing := [name for name in wanted if name not in known]:
                listed = ", ".join(map(repr, known[:8])) + (", …" if len(known) > 8 else "")
                raise InvalidInputError(f"there is no {what} {missing[0]!r} here; there are {listed}")
            kept &= np.array([not set(wanted).isdisjoint(names) for names in zip(*held, strict=True)])
        if not kept.any():
            raise InvalidInputError("no instruction matches all selections; drop category, source or instruction")
        return self.take(np.flatnonzero(kept))

    def take(self, places: NDArray[np.intp]) -> Self:
        """Return the instructions at these indices: intp (m,), with all per-instruction arrays."""
        places, changed = np.arange(len(self))[places], dict[str, Any]()
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("ids", "categories", "sources"):
                changed[one.name] = [value[k] for k in places]
            elif isinstance(value, np.ndarray) and len(value) == len(self):
                changed[one.name] = value[places]
            elif hasattr(value, "take_rows"):
                changed[one.name] = value.take_rows(places)
        return self._replaced(**changed)

    def with_options(self, **changes: Any) -> Self:
        """Return a copy with other options of resampling and display; groups and selection are unchanged.

        Raises:
            InvalidInputError: an option needs a new pass over the archive, or a value is invalid.
        """
        if fixed := [name for name in changes if name in FIXED_OPTIONS]:
            raise InvalidInputError(
                f"{fixed[0]} is fixed once instructions are counted; "
                + ("use grouped() instead" if fixed[0] == "group_by" else "count them again with another value")
            )
        if not changes:
            return self
        changed = replace(self, options=Options.of(self.options, **changes))
        if "pairs" in self.__dict__:
            changed.__dict__["pairs"] = self.__dict__["pairs"]
        return changed

    def grouped(self, by: Sequence[str]) -> Self:
        """Return a copy with other groups, e.g. `("category",)`, `("source",)` or `("category", "half")`."""
        options = Options.of(self.options, group_by=tuple(by))
        return self._replaced(options=options, categories=group_names(self.archive, self.instruction, options))

    def _replaced(self, **changes: Any) -> Self:
        """Return a copy with other instructions or groups."""
        return replace(self, **changes)

    def _summary(self) -> Iterator[str]:
        """Yield the parts of the repr."""
        groups = ", ".join(self.labels[:8]) + (", …" if len(self.labels) > 8 else "")
        yield f"{len(self):,} instruction{'' if len(self) == 1 else 's'} of {self.model}"
        yield f"by {' × '.join(self.options.group_by)} ({groups})"
        drawn = "" if self.token_facts.drawn is None else f", {self.token_facts.drawn} drawn per instruction"
        what = "prompt and response" if self.positions == "all" else self.positions
        yield f"{int(self.tokens.sum()):,} {what} tokens{drawn}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'; '.join(self._summary())}>"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(part)}</li>" for part in self._summary())
        return f"<b>{type(self).__name__}</b><ul style='margin:0'>{items}</ul>"


def group_names(archive: Archive, instruction: NDArray[np.int64], options: Options) -> list[str]:
    """Return the group of each instruction: category, source or half; several are joined, as in "CLS / natural"."""
    table = archive.instructions
    halves = ["synthetic" if source in SYNTHETIC else source and "natural" for source in table.source]
    held = {"category": table.category, "source": table.source, "half": halves}
    columns = [held[name] for name in options.group_by]
    if len(columns) == 1:
        return [columns[0][i] for i in instruction]
    return [" / ".join(column[i] or NONE_LABEL for column in columns) for i in instruction]


def shared_fields(archive: Archive, spans: RowSpans, options: Options) -> dict[str, Any]:
    """Return the fields of `PerInstruction` for these spans."""
    table = archive.instructions
    return {
        "archive": archive,
        "options": options,
        "positions": spans.positions,
        "token_facts": spans.token_facts,
        "instruction": spans.instruction,
        "ids": [table.id[i] for i in spans.instruction],
        "categories": group_names(archive, spans.instruction, options),
        "sources": [table.source[i] for i in spans.instruction],
        "tokens": spans.tokens,
        "without_rows": spans.without_rows,
    }
