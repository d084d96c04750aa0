"""Compare a base model with its fine-tuned version, instruction by instruction (SPARCOM, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import PopulationName
from sparcom_analysis.frequencies import Progress, opened
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.isn import IsnSets, find_isns
from sparcom_analysis.kernels.correlations import pearson
from sparcom_analysis.kernels.intersections import jaccard
from sparcom_analysis.matching import Matched, check_models, match_instructions
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError

if TYPE_CHECKING:
    import xarray as xr

Side = TypeVar("Side", IsnSets, ExpertCounts)


@dataclass(frozen=True, eq=False, repr=False)
class _Both(Generic[Side]):
    """Results of both models and the m instructions that they have in common."""

    base: Side
    tuned: Side
    matched: Matched

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def options(self) -> Options:
        """Options of both sides."""
        return self.base.options

    def with_options(self, **changes: Any) -> Self:
        """Return a copy with other options of resampling and display; see `PerInstruction.with_options`."""
        sides = [side.with_options(**changes) for side in (self.base, self.tuned)]
        return replace(self, base=sides[0], tuned=sides[1]) if changes else self


class IsnComparison(_Both[IsnSets]):
    """The ISN sets of m matched instructions in both models."""

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """ISNs common to both models, per instruction and layer: int64 (m, layer)."""
        part = self.base.population
        shared = np.empty((len(self), part.layers), dtype=np.int64)
        for row, (i, j) in enumerate(zip(self.matched.base.tolist(), self.matched.tuned.tolist(), strict=True)):
            both = self.base.sets.rows(i, i + 1)[0] & self.tuned.sets.rows(j, j + 1)[0]
            packed = both.view(np.uint8)[: part.layers * part.columns // 8].reshape(part.layers, -1)
            shared[row] = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
        return shared

    @property
    def base_counts(self) -> NDArray[np.int64]:
        """ISNs of the base model per matched instruction and layer: int64 (m, layer)."""
        return self.base.layer_counts[self.matched.base]

    @property
    def tuned_counts(self) -> NDArray[np.int64]:
        """ISNs of the tuned model per matched instruction and layer: int64 (m, layer)."""
        return self.tuned.layer_counts[self.matched.tuned]

    @property
    def jaccard(self) -> NDArray[np.float64]:
        """J* of equation 15: float64 (m,), NaN if both sets are empty."""
        return jaccard(*(part.sum(axis=1) for part in (self.shared, self.base_counts, self.tuned_counts)))

    @property
    def layer_jaccard(self) -> NDArray[np.float64]:
        """J* per layer: float64 (m, layer)."""
        return jaccard(self.shared, self.base_counts, self.tuned_counts)


class ExpertComparison(_Both[ExpertCounts]):
    """The expert counts of m matched instructions in both models."""

    @cached_property
    def sides(self) -> tuple[ExpertCounts, ExpertCounts]:
        """Both models' counts of the matched instructions, in the same order and with the base's groups."""
        base = self.base.take(self.matched.base)
        return base, replace(self.tuned.take(self.matched.tuned), categories=base.categories)

    @cached_property
    def correlation(self) -> NDArray[np.float64]:
        """r* of equation 16: float64 (m,), NaN if a model's frequencies are constant.

        Raises:
            UnsupportedArchiveError: an instruction is too long for exact sums (a hundred million tokens).
        """
        base, tuned = self.sides
        longest, size = max(int(side.tokens.max()) for side in self.sides), int(base.counts[0].size)
        if longest**2 * size >= 2**63:
            raise UnsupportedArchiveError(
                f"exact correlations need T² times the {size} experts of all layers below 2⁶³; an instruction has "
                f"{longest:,} tokens. Leave such instructions out"
            )
        return np.array([pearson(a.reshape(-1), b.reshape(-1)) for a, b in zip(base.counts, tuned.counts, strict=True)])


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Comparison of a base and a tuned model, returned by `compare`. Methods take resampling options as `**changes`.

    Methods for experts raise `InvalidInputError` if the models have no router.

    Attributes:
        isn: ISN sets of both models. experts: expert counts of both models; None for dense models.
    """

    isn: IsnComparison
    experts: ExpertComparison | None

    def jaccard(self, **changes: Any) -> xr.Dataset:
        """Return equation 15, table 1; see `measures.finetuning.jaccard`."""
        return _measure("jaccard.finetuning_jaccard")(self.isn, **changes)

    def layers(self, **changes: Any) -> xr.Dataset:
        """Return figure 5 of both models and their difference; see `measures.finetuning.layers`."""
        return _measure("layers.finetuning_layers")(self.isn, **changes)

    def venn(self, *instructions: str) -> xr.Dataset:
        """Return figure 6 for these instructions (default: a typical one per category)."""
        return _measure("venn.venn")(self.isn, instructions or None)

    def routing_correlation(self, **changes: Any) -> xr.Dataset:
        """Return equation 16, table 2; see `measures.finetuning.correlation`."""
        return _measure("correlation.finetuning_correlation")(self._routed(), **changes)

    def routing_shift(self, **changes: Any) -> xr.Dataset:
        """Return the total variation of expert frequencies; see `measures.finetuning.routing_shift`."""
        return _measure("routing_shift.routing_shift")(self._routed(), **changes)

    @property
    def notes(self) -> list[str]:
        """Differences between the two archives other than tuning, one sentence each."""
        return matched_notes(self.isn)

    def _routed(self) -> ExpertComparison:
        if self.experts is None:
            raise InvalidInputError("comparing experts needs MoE models; these models have no router")
        return self.experts

    def __repr__(self) -> str:
        matched, known = self.isn.matched, self.isn.jaccard[~np.isnan(self.isn.jaccard)]
        tokens = matched.different_tokens
        return (
            f"<Comparison: {self.isn.base.model} and {self.isn.tuned.model}; {len(matched):,} matched instructions; "
            f"{'token ids not compared' if tokens is None else f'{tokens:,} with different tokens'}; "
            f"{f'mean Jaccard {known.mean():.3f}' if known.size else 'no ISNs'}>"
        )


def _measure(name: str) -> Callable[..., xr.Dataset]:
    """Import "module.function" of `measures.finetuning` late, because it imports this module."""
    module, function = f"sparcom_analysis.measures.finetuning.{name}".rsplit(".", 1)
    found: Callable[..., xr.Dataset] = getattr(import_module(module), function)
    return found


def compare(
    base: Archive | str | Path,
    tuned: Archive | str | Path,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Comparison:
    """Compare a base and a tuned model on the instructions that are complete in both archives.

    Args:
        base, tuned: archives of the same instructions, or their paths or URLs.
        options, population, progress, **changes: as for `find_isns`.

    Raises:
        UnsupportedArchiveError: the models do not match.
        IncompleteArchiveError: no instruction is complete in both archives.
    """
    first, second, options = opened(base), opened(tuned), Options.of(options, **changes)
    check_models(first, second)
    sides = [find_isns(one, options, population=population, progress=progress) for one in (first, second)]
    isn = IsnComparison(sides[0], sides[1], match_instructions(sides[0], sides[1]))
    experts = None
    if first.moe is not None and "router" in first.attributes.capture.components:
        routed = [find_ises(one, options, progress=progress) for one in (first, second)]
        experts = ExpertComparison(routed[0], routed[1], match_instructions(routed[0], routed[1], isn.matched))
    return Comparison(isn, experts)


def matched_notes(comparison: IsnComparison | ExpertComparison) -> list[str]:
    """Return the differences between two archives other than tuning, one sentence each."""
    base, tuned = (side.archive.attributes for side in (comparison.base, comparison.tuned))
    tokenizers = {base.model.tokenizer_sha256, tuned.model.tokenizer_sha256}
    table, matched = comparison.tuned.archive.instructions, comparison.matched
    complete = f"{len(table.complete):,} of its {len(table):,} instructions are complete"
    counts = any(side.archive.granularity == "count" for side in (comparison.base, comparison.tuned))
    unknown, tokens = matched.different_tokens is None, matched.different_tokens or 0
    of, text = f"of the {len(matched):,} matched instructions", "This contributes to the difference between the models"
    notes = {
        f"The architectures differ: {base.model.architecture} (base), {tuned.model.architecture} (tuned).": (
            base.model.architecture != tuned.model.architecture
        ),
        "The models have different tokenizers.": all(tokenizers) and len(tokenizers) == 2,
        f"The prompt formats differ: {base.capture.prompt_format} (base), {tuned.capture.prompt_format} (tuned).": (
            base.capture.prompt_format != tuned.capture.prompt_format
        ),
        "Only one model's prompts have added special tokens.": (
            base.capture.add_special_tokens != tuned.capture.add_special_tokens
        ),
        f"The extraction of the tuned archive was still running: {complete}.": tuned.state == "open",
        f"The tuned archive is incomplete: {complete}.": tuned.state != "open" and len(table.complete) < len(table),
        f"Token ids were not compared{': archives of counts hold none' if counts else ''}.": unknown,
        f"{tokens:,} {of} have different tokens in the two archives. {text}.": tokens > 0,
        f"{matched.different_lengths:,} {of} have different numbers of tokens in the two archives. {text}.": (
            unknown and matched.different_lengths > 0
        ),
        f"{matched.different_categories:,} {of} have another category in the tuned archive; the analysis uses the base "
        "archive's categories.": matched.different_categories > 0,
    }
    return [note for note, holds in notes.items() if holds]
