"""From an archive to a folder of results: check, measure, summarise, draw, write.

Each component of the archive is a pass over its masks, the experts one over the router's choices, a tuned twin the same
over its own, and matching T the same again. The folder is tried before the passes, which may take hours; how its files
are replaced, `report.folder` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparcom_analysis.components.general_unique import DEFAULT_SHARE
from sparcom_analysis.components.lape import LapeRates
from sparcom_analysis.measure import Job, count_passes, measure
from sparcom_analysis.measures.experts import InstructionExperts
from sparcom_analysis.measures.frequencies import Progress
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.options import Options
from sparcom_analysis.passes import Passes
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.reading.rows import CountedTokens, Rows, SpecialTokens
from sparcom_analysis.report.files import render
from sparcom_analysis.report.folder import check_output, write_folder
from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics
from sparcom_analysis.statistics.bootstrap import CONFIDENCE, RESAMPLES
from sparcom_analysis.statistics.permutation import PERMUTATIONS
from sparcom_analysis.summary.whole import summarise
from sparcom_analysis.tuned.shift import check_twins
from sparcom_analysis.tuned.twins import check_models
from sparcom_data.archive import Archive, open_archive


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyze` made: the numbers, the sets behind them, and where the files lie.

    results: everything as arrays; the rest of the properties are parts of it.
    """

    metrics: Metrics
    results: Results
    output: Path

    @property
    def components(self) -> dict[str, InstructionNeurons]:
        """The sets of each component, the one that the archive is about first."""
        return {one.neurons.population.component: one.neurons for one in self.results.neurons}

    @property
    def neurons(self) -> InstructionNeurons:
        """The sets of the component that the archive is about."""
        return self.results.neurons[0].neurons

    @property
    def experts(self) -> InstructionExperts | None:
        """What the experts were used for; None for a dense model."""
        return None if self.results.experts is None else self.results.experts.experts

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self.output / "report.html"


def analyze(
    archive: Archive | str | Path,
    output: str | Path,
    *,
    tuned: Archive | str | Path | None = None,
    epsilon: float | None = None,
    threshold: float | None = None,
    rows: Rows | None = None,
    exclude_self_pairs: bool = False,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
    match_tokens: bool | None = None,
    matched_tokens: int | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    share: float = DEFAULT_SHARE,
    lape_rates: LapeRates | None = None,
    instructions: Sequence[str] | None = None,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Analysis:
    """Compute everything and write metrics.json, tables/, figures/, lists/, components.json and report.html.

    Args:
        archive: an opened archive, or its path or address.
        output: a folder outside of archives, made where it does not exist; temporary files lie there where sets
            outgrow memory.
        tuned: an archive of the fine-tuned twin: what tuning alters among neurons and experts.
        exclude_self_pairs: show similarities without pairs of an instruction with itself; both are always computed.
        epsilon, threshold, rows, special_tokens, special_token_ids, counted_tokens, block_bytes: see
            `instruction_specific_neurons`.
        match_tokens: the measures again with T matched; True ends with an error where that cannot be, None says so in
            the report, False leaves it out.
        matched_tokens: how many tokens stand for each instruction; see `TokenDraw`.
        resamples, confidence: of bootstrap intervals; 0 resamples: none. General and unique components take at most
            200.
        permutations: shuffles of the tests against chance; 0: none. General and unique components take at most 500.
        seed: of every draw and shuffle.
        share: of a category's instructions from which a component is the category's.
        lape_rates: how much LAPE takes; the authors' own without it.
        instructions: ids of those that figure 6 shows; without it a typical one of each category.
        progress: called with rows and shuffles done, and in all, over every pass.

    Raises:
        InvalidInputError: an option is not so, or an instruction to show is not in both archives.
        UnsupportedArchiveError: the archives are not of a model and its twin, or lack what was asked for.
        IncompleteArchiveError, DamagedArchiveError, StorageError: as reading and writing say.
    """
    options = Options(
        epsilon=epsilon,
        threshold=threshold,
        rows=rows,
        exclude_self_pairs=exclude_self_pairs,
        special_tokens=special_tokens,
        special_token_ids=special_token_ids,
        counted_tokens=counted_tokens,
        match_tokens=match_tokens,
        matched_tokens=matched_tokens,
        resamples=resamples,
        permutations=permutations,
        confidence=confidence,
        seed=seed,
        share=share,
        lape_rates=lape_rates,
        instructions=instructions,
    )
    opened, twin = _open(archive), None if tuned is None else _open(tuned)
    _check_pair(opened, twin)
    options.check(opened, twin)
    folder = Path(output)
    check_output(folder)
    passes = Passes(progress, count_passes(opened, twin, options))
    results = measure(Job(opened, twin, options, passes, block_bytes, folder))
    for read in filter(None, (opened, twin)):
        read.require_same()  # over HTTP the passes look only every few seconds
    metrics = summarise(results, options)
    write_folder(folder, render(metrics, results))
    return Analysis(metrics, results, folder)


def _open(archive: Archive | str | Path) -> Archive:
    return archive if isinstance(archive, Archive) else open_archive(archive)


def _check_pair(base: Archive, tuned: Archive | None) -> None:
    """Refuse what cannot be a model before and after tuning."""
    if tuned is None:
        return
    if base.attributes.model.moe is not None:
        check_twins(base, tuned)
    check_models(base, tuned)
