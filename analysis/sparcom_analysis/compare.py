"""A base model beside its fine-tuned version, instruction by instruction (SPARCOM, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False, repr=False)
class IsnComparison:
    """The ISN sets of m matched instructions in both models.

    Attributes:
        base, tuned: the sets of each model. matched: which instructions both have.
    """

    base: IsnSets
    tuned: IsnSets
    matched: Matched

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def options(self) -> Options:
        """How both were selected."""
        return self.base.options

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """ISNs of both models per instruction and layer: int64 (m, layer)."""
        part = self.base.population
        shared = np.empty((len(self), part.layers), dtype=np.int64)
        places = zip(self.matched.base.tolist(), self.matched.tuned.tolist(), strict=True)
        for row, (left, right) in enumerate(places):
            both = self.base.sets.rows(left, left + 1)[0] & self.tuned.sets.rows(right, right + 1)[0]
            packed = both.view(np.uint8)[: part.layers * part.columns // 8].reshape(part.layers, -1)
            shared[row] = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
        return shared

    @property
    def base_counts(self) -> NDArray[np.int64]:
        """ISNs of the base model per matched instruction and layer: int64 (m, layer)."""
        return self.base.layer_counts[self.matched.base]

    @property
    def tuned_counts(self) -> NDArray[np.int64]:
        """ISNs of the tuned model, likewise."""
        return self.tuned.layer_counts[self.matched.tuned]

    @property
    def jaccard(self) -> NDArray[np.float64]:
        """J* of equation 15: float64 (m,), NaN if both sets are empty."""
        return jaccard(*(part.sum(axis=1) for part in (self.shared, self.base_counts, self.tuned_counts)))

    @property
    def layer_jaccard(self) -> NDArray[np.float64]:
        """The same of each layer's neurons alone: float64 (m, layer)."""
        return jaccard(self.shared, self.base_counts, self.tuned_counts)


@dataclass(frozen=True, eq=False, repr=False)
class ExpertComparison:
    """The expert counts of m matched instructions in both models; attributes as of `IsnComparison`."""

    base: ExpertCounts
    tuned: ExpertCounts
    matched: Matched

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def options(self) -> Options:
        """How both were counted."""
        return self.base.options

    @cached_property
    def sides(self) -> tuple[ExpertCounts, ExpertCounts]:
        """Both models' counts of the matched instructions alone, in the same order and the base's groups."""
        from dataclasses import replace

        base = self.base.take(self.matched.base)
        return base, replace(self.tuned.take(self.matched.tuned), categories=base.categories)

    @cached_property
    def correlation(self) -> NDArray[np.float64]:
        """r* of equation 16: float64 (m,), NaN if a model's frequencies have no variance."""
        base, tuned = self.sides
        return np.array([pearson(a.reshape(-1), b.reshape(-1)) for a, b in zip(base.counts, tuned.counts, strict=True)])


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A base and a tuned model, as `compare` returns it.

    Attributes:
        isn: ISN sets of both. experts: expert counts of both; None for dense models.
    """

    isn: IsnComparison
    experts: ExpertComparison | None

    def jaccard(self) -> xr.Dataset:
        """Return equation 15, table 1: see `measures.finetuning.jaccard`."""
        from sparcom_analysis.measures.finetuning.jaccard import MEASURE

        return MEASURE.compute(self.isn, None)

    def layers(self) -> xr.Dataset:
        """Return figure 5 of both models and their difference: see `measures.finetuning.layers`."""
        from sparcom_analysis.measures.finetuning.layers import MEASURE

        return MEASURE.compute(self.isn, None)

    def venn(self, *instructions: str) -> xr.Dataset:
        """Return figure 6 of these instructions, or of the most typical one per category."""
        from sparcom_analysis.measures.finetuning.venn import venn

        return venn(self.isn, instructions or None)

    def routing_correlation(self) -> xr.Dataset:
        """Return equation 16, table 2: see `measures.finetuning.correlation`.

        Raises:
            InvalidInputError: the models have no router.
        """
        from sparcom_analysis.measures.finetuning.correlation import MEASURE

        return MEASURE.compute(self._routed(), None)

    def routing_shift(self) -> xr.Dataset:
        """Return how tuning shifts expert frequencies: see `measures.finetuning.routing_shift`."""
        from sparcom_analysis.measures.finetuning.routing_shift import MEASURE

        return MEASURE.compute(self._routed(), None)

    def _routed(self) -> ExpertComparison:
        from sparcom_data.errors import InvalidInputError

        if self.experts is None:
            raise InvalidInputError("experts are compared of MoE models; these have no router")
        return self.experts

    def __repr__(self) -> str:
        one = self.isn
        tokens = one.matched.different_tokens
        said = "tokens not compared" if tokens is None else f"{tokens:,} read different tokens"
        return (
            f"<Comparison: {one.base.model} and {one.tuned.model}; {len(one):,} matched instructions, {said}; "
            f"mean Jaccard {np.nanmean(one.jaccard):.3f}>"
        )

    def _repr_html_(self) -> str:
        from html import escape

        return escape(repr(self))


def compare(
    base: Archive | str | Path,
    tuned: Archive | str | Path,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Comparison:
    """Measure a base and a tuned model over the instructions that both completed.

    Args:
        base, tuned: archives of the same instructions, or their paths or addresses.
        options, population, progress, **changes: as for `find_isns`.

    Raises:
        UnsupportedArchiveError: the archives are not of a model and its tuned version.
        IncompleteArchiveError: no instruction is complete in both.
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
