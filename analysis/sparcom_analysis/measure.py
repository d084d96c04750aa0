"""Computes every measure of an archive, and of it beside a tuned twin: one pass a component, one for the router.

1. Select the neurons of each component; counts are pooled by category on the way (LAPE).
2. Compare all pairs once; means, intervals and tests are taken from the pairs kept.
3. The experts likewise, from the router's choices.
4. With a twin: the same passes over it, instruction by instruction beside the base.
5. Where T can be matched: the passes once more with drawn tokens.

Past some thousands of instructions pairs are not kept (`summary.chance.why_not`): then there are means alone, and the
results say why. Writes nothing but temporary files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TypedDict

from sparcom_analysis.components import bootstrap as components_bootstrap
from sparcom_analysis.components import chance as components_chance
from sparcom_analysis.components.experts import expert_memberships
from sparcom_analysis.components.lape import Lape, lape
from sparcom_analysis.components.memberships import Memberships, neuron_memberships
from sparcom_analysis.components.pooled import PoolWhileReading
from sparcom_analysis.components.result import ComponentResult, component_result
from sparcom_analysis.measures.correlation import correlation_pairs, expert_correlation
from sparcom_analysis.measures.experts import (
    InstructionExperts,
    category_experts,
    instruction_experts,
    top_experts,
    top_shares,
)
from sparcom_analysis.measures.layers import isn_by_layer
from sparcom_analysis.measures.selection import InstructionNeurons, instruction_specific_neurons
from sparcom_analysis.measures.similarity import category_similarity, similarity_pairs
from sparcom_analysis.options import Options
from sparcom_analysis.passes import Passes
from sparcom_analysis.reading.categories import category_labels
from sparcom_analysis.reading.populations import Component, choose_population, populations
from sparcom_analysis.reading.rows import CountedTokens, Rows, SpecialTokens, choose_rows
from sparcom_analysis.results import DeadLayers, ExpertResult, NeuronResult, Results
from sparcom_analysis.statistics.bootstrap import Resamples, draw_resamples, mean_intervals, pair_intervals
from sparcom_analysis.statistics.length_control import LengthControl, length_control
from sparcom_analysis.statistics.pair_matrix import PairMatrix
from sparcom_analysis.statistics.permutation import LabelTests, permutation_tests
from sparcom_analysis.summary.chance import why_not
from sparcom_analysis.tuned.alteration import expert_alteration, neuron_alteration
from sparcom_analysis.tuned.moved import moved_intervals
from sparcom_analysis.tuned.shift import expert_shift
from sparcom_analysis.tuned.twins import Twins, match_twins
from sparcom_data.archive import Archive
from sparcom_data.errors import IncompleteArchiveError

COUNTS_ALONE = "needs masks of single tokens; the archive holds counts over all tokens of an instruction."


class _Reading(TypedDict):
    """How rows are read, the same for every pass."""

    rows: Rows
    block_bytes: int
    special_tokens: SpecialTokens
    special_token_ids: list[int] | None
    counted_tokens: CountedTokens


@dataclass(frozen=True, slots=True)
class Job:
    """What to analyse and how. scratch: a folder for temporary files."""

    archive: Archive
    tuned: Archive | None
    options: Options
    passes: Passes
    block_bytes: int
    scratch: Path

    def reading(self, archive: Archive) -> _Reading:
        """Which rows of this archive, and how many at once."""
        ids = self.options.special_token_ids
        return {
            "rows": choose_rows(archive, self.options.rows),
            "block_bytes": self.block_bytes,
            "special_tokens": self.options.special_tokens,
            "special_token_ids": None if ids is None else list(ids),
            "counted_tokens": self.options.counted_tokens,
        }

    def neurons(
        self, archive: Archive, component: Component, pool: PoolWhileReading | None = None
    ) -> InstructionNeurons:
        """The ISN sets of one component, in one pass."""
        return instruction_specific_neurons(
            archive,
            epsilon=self.options.epsilon,
            threshold=self.options.threshold,
            component=component,
            progress=self.passes.next(),
            scratch=self.scratch,
            least=2 if archive is self.archive else 1,
            also=pool,
            **self.reading(archive),
        )

    def experts(self, archive: Archive) -> InstructionExperts:
        """The expert counts, in one pass over the router's choices."""
        least = 2 if archive is self.archive else 1
        return instruction_experts(archive, progress=self.passes.next(), least=least, **self.reading(archive))


def count_passes(archive: Archive, tuned: Archive | None, options: Options) -> int:
    """How many passes `measure` makes: over rows, and over resamples and shuffles."""
    parts = len(found_components(archive)) + (archive.attributes.model.moe is not None)
    matched = archive.granularity == "token" and options.match_tokens is not False
    drawn = options.permutations > 0 or options.resamples > 0
    return parts * (1 + (tuned is not None) + matched + (options.permutations > 0) + drawn)


def found_components(archive: Archive) -> list[Component]:
    """The components with neurons, the one that the analysis is about first."""
    return [item.component for item in populations(archive)] or [choose_population(archive).component]


def measure(job: Job) -> Results:
    """Compute everything; errors are those of the functions that read archives."""
    skipped: dict[str, str] = {}
    base, pools = [], []
    for component in found_components(job.archive):
        pools.append(PoolWhileReading())
        base.append(job.neurons(job.archive, component, pools[-1]))
    dead = [DeadLayers.of("base", one) for one in base]
    moe = job.archive.attributes.model.moe is not None
    experts = job.experts(job.archive) if moe else None
    chance = _Chance.of(job, base[0], skipped)
    found = [chance.neurons(one) for one in base]
    found = [replace(one, lape=_lape(pool, job.options, skipped)) for one, pool in zip(found, pools, strict=True)]
    chosen = None if experts is None else chance.experts(experts)
    resamples = None
    if job.tuned is not None:
        found, chosen, resamples = _altered(job, job.tuned, found, chosen, chance, dead)
    control = _control(job, base, experts, chance, skipped)
    job.passes.finish()
    return Results(job.archive, found, chosen, job.tuned, control, chance.resamples, resamples, skipped, dead)


@dataclass(frozen=True, slots=True)
class _Chance:
    """Measures with what chance says of them. reason: why it says nothing, empty where it does."""

    job: Job
    reason: str
    resamples: Resamples | None

    @classmethod
    def of(cls, job: Job, neurons: InstructionNeurons, skipped: dict[str, str]) -> _Chance:
        """Draw instructions once for all measures, where there are not too many."""
        options = job.options
        reason = why_not(len(neurons), len(category_labels(neurons.categories)))
        if reason or not options.resamples:
            skipped["intervals"] = reason or "Intervals were not asked for (resamples 0)."
        if reason or not options.permutations:
            skipped["tests"] = reason or "Tests were not asked for (permutations 0)."
        resamples = None
        if not reason and options.resamples:
            resamples = _draws(options, neurons.categories)
        return cls(job, reason, resamples)

    def neurons(self, neurons: InstructionNeurons) -> NeuronResult:
        """The measures of one component's sets."""
        pairs = None if self.reason else similarity_pairs(neurons)
        return NeuronResult(
            neurons,
            category_similarity(neurons, pairs),
            isn_by_layer(neurons),
            self.groups(neuron_memberships(neurons)),
            None if pairs is None or self.resamples is None else pair_intervals(pairs, self.resamples),
            None if self.resamples is None else mean_intervals(neurons.layer_counts, self.resamples),
            self.tests(pairs),
        )

    def experts(self, experts: InstructionExperts) -> ExpertResult:
        """The measures of the experts."""
        pairs = None if self.reason else correlation_pairs(experts)
        means = category_experts(experts)
        top = top_experts(means)
        frequencies, shares = None, None
        if self.resamples is not None:
            frequencies = mean_intervals(experts.counts / experts.tokens[:, None, None], self.resamples)
            shares = mean_intervals(top_shares(experts, top), self.resamples).by_category
        return ExpertResult(
            experts,
            means,
            top,
            expert_correlation(experts, pairs),
            self.groups(expert_memberships(experts)),
            None if pairs is None or self.resamples is None else pair_intervals(pairs, self.resamples),
            frequencies,
            self.tests(pairs),
            share_interval=shares,
        )

    def tests(self, pairs: PairMatrix | None) -> LabelTests | None:
        """Shuffled names, where pairs are kept."""
        options = self.job.options
        if pairs is None or not options.permutations:
            return None
        return permutation_tests(
            pairs, permutations=options.permutations, seed=options.seed, progress=self.job.passes.next()
        )

    def groups(self, members: Memberships) -> ComponentResult:
        """General and unique components; a draw costs more here, so there are fewer of them at most."""
        options = self.job.options
        resamples = 0 if self.reason else min(options.resamples, components_bootstrap.RESAMPLES)
        shuffles = 0 if self.reason else min(options.permutations, components_chance.SHUFFLES)
        return component_result(
            members,
            options.share,
            resamples=resamples,
            confidence=options.confidence,
            shuffles=shuffles,
            seed=options.seed,
            scratch=self.job.scratch,
            progress=self.job.passes.next() if resamples or shuffles else None,
        )


def _draws(options: Options, categories: Sequence[str]) -> Resamples:
    return draw_resamples(categories, resamples=options.resamples, confidence=options.confidence, seed=options.seed)


def _lape(pool: PoolWhileReading, options: Options, skipped: dict[str, str]) -> Lape | None:
    if pool.counts is None:
        skipped["lape"] = pool.reason
        return None
    return lape(pool.counts, options.lape_rates)


def _altered(
    job: Job,
    tuned: Archive,
    found: list[NeuronResult],
    experts: ExpertResult | None,
    chance: _Chance,
    dead: list[DeadLayers],
) -> tuple[list[NeuronResult], ExpertResult | None, Resamples | None]:
    """The same results with what tuning alters, and the draws of the instructions of both. dead: is added to."""
    twins: Twins | None = None
    results = []
    for one in found:
        other = job.neurons(tuned, one.neurons.population.component)
        dead.append(DeadLayers.of("tuned", other))
        twins = _same_tokens(match_twins(one.neurons, other, None if twins else (job.archive, tuned)), twins)
        results.append(replace(one, altered=neuron_alteration(one.neurons, other, twins)))
    assert twins is not None  # noqa: S101  (every archive has a component)
    draws = None if chance.resamples is None else _draws(job.options, twins.categories)
    if experts is not None:
        routed = job.experts(tuned)
        matched = _same_tokens(match_twins(experts.experts, routed), twins)
        experts = replace(
            experts,
            shift=expert_shift(experts.experts, routed, matched),
            altered=expert_alteration(experts.experts, routed, matched),
            moved_interval=None if draws is None else moved_intervals(experts.experts, routed, draws, matched),
        )
    return results, experts, draws


def _same_tokens(found: Twins, known: Twins | None) -> Twins:
    """Which instructions read the same tokens is found once; every component has the same instructions."""
    if known is None:
        return found
    assert found.ids == known.ids  # noqa: S101  (the same rows of the same archives)
    return replace(found, same_tokens=known.same_tokens)


def _control(
    job: Job,
    neurons: list[InstructionNeurons],
    experts: InstructionExperts | None,
    chance: _Chance,
    skipped: dict[str, str],
) -> LengthControl | None:
    """The measures with T matched; None where that was not asked for or, without being asked for, cannot be."""
    options = job.options
    if options.match_tokens is False:
        skipped["length_matched"] = "Matching T was not asked for."
    elif job.archive.granularity == "count":
        skipped["length_matched"] = f"Matching T {COUNTS_ALONE}"
    if "length_matched" in skipped:
        return None
    try:
        return length_control(
            job.archive,
            neurons,
            experts,
            options.draw,
            draws=None if chance.resamples is None else partial(_draws, options),
            passes=job.passes.next,
            block_bytes=job.block_bytes,
            scratch=job.scratch,
        )
    except IncompleteArchiveError as error:
        if options.must_match:
            raise
        said = str(error).replace(str(job.archive.path), PurePath(job.archive.path).name)
        skipped["length_matched"] = f"{said[:1].upper()}{said[1:]}."
        return None
