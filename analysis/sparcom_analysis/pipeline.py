"""From an archive to a folder of results: select, compare, summarise, draw, write.

Each component of the archive is a pass over its masks, the experts one over the router's choices, a tuned twin one over
its own. Files are replaced one by one and each whole; other files in the folder stay. The folder is tried before the
passes, which may take hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sparcom_analysis.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.correlation import expert_correlation
from sparcom_analysis.expert_summary import ExpertResult
from sparcom_analysis.experts import InstructionExperts, category_experts, instruction_experts, top_experts
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.layers import isn_by_layer
from sparcom_analysis.populations import choose_population, populations
from sparcom_analysis.render import render
from sparcom_analysis.rows import Rows, choose_rows
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons, instruction_specific_neurons
from sparcom_analysis.similarity import category_similarity
from sparcom_analysis.summary import ComponentResult, summarise
from sparcom_analysis.tuning import check_twins, expert_shift
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import StorageError, UnsupportedArchiveError
from sparcom_data.storage import write_durably


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyze` made: the numbers, the sets behind them, and where the files lie.

    neurons: of each component, the one that the archive is about first. experts: None for a dense model.
    """

    metrics: Metrics
    components: dict[str, InstructionNeurons]
    experts: InstructionExperts | None
    output: Path

    @property
    def neurons(self) -> InstructionNeurons:
        """The sets of the component that the archive is about."""
        return next(iter(self.components.values()))

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self.output / "report.html"


class _Reading(TypedDict):
    rows: Rows
    block_bytes: int


def analyze(
    archive: Archive | str | Path,
    output: str | Path,
    *,
    tuned: Archive | str | Path | None = None,
    epsilon: float | None = None,
    threshold: float | None = None,
    rows: Rows | None = None,
    exclude_self_pairs: bool = False,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Analysis:
    """Compute everything and write metrics.json, tables/, figures/ and report.html.

    Args:
        archive: an opened archive, or its path or address.
        output: a folder, made where it does not exist; a temporary file lies there where sets outgrow memory.
        tuned: an archive of the fine-tuned twin of a mixture of experts, to compare expert frequencies with.
        exclude_self_pairs: show similarities without pairs of an instruction with itself; both are always computed.
        epsilon, threshold, rows, block_bytes: see `instruction_specific_neurons`.
        progress: called with rows done and rows in all, over every pass.
    """
    opened, twin = _open(archive), None if tuned is None else _open(tuned)
    _check_pair(opened, twin)
    folder = Path(output)
    _check_writable(folder)
    reading: _Reading = {"rows": choose_rows(opened, rows), "block_bytes": block_bytes}
    found = [item.component for item in populations(opened)] or [choose_population(opened).component]
    moe = opened.attributes.model.moe is not None
    passes = _Passes(progress, len(found) + moe + (twin is not None))
    results = []
    for component in found:
        neurons = instruction_specific_neurons(
            opened,
            epsilon=epsilon,
            threshold=threshold,
            component=component,
            progress=passes.next(),
            scratch=folder,
            **reading,
        )
        results.append(ComponentResult(neurons, category_similarity(neurons), isn_by_layer(neurons)))
    experts = _experts(opened, twin, passes, reading) if moe else None
    metrics = summarise(opened, results, experts, exclude_self_pairs=exclude_self_pairs)
    sets: dict[str, InstructionNeurons] = {result.neurons.population.component: result.neurons for result in results}
    for name, data in render(metrics, sets).items():
        write_durably(folder / name, [data])
    return Analysis(metrics, sets, None if experts is None else experts.experts, folder)


def _open(archive: Archive | str | Path) -> Archive:
    return archive if isinstance(archive, Archive) else open_archive(archive)


def _check_pair(base: Archive, tuned: Archive | None) -> None:
    if tuned is None:
        return
    if base.attributes.model.moe is None:
        raise UnsupportedArchiveError(
            f"a tuned archive is compared in its experts; {base.path} is of a model without any. Leave --tuned out"
        )
    check_twins(base, tuned)


def _experts(archive: Archive, twin: Archive | None, passes: _Passes, reading: _Reading) -> ExpertResult:
    experts = instruction_experts(archive, progress=passes.next(), **reading)
    means = category_experts(experts)
    shift = None
    if twin is not None:
        shift = expert_shift(experts, instruction_experts(twin, progress=passes.next(), least=1, **reading))
    return ExpertResult(experts, means, top_experts(means), expert_correlation(experts), shift, twin)


class _Passes:
    """One progress over several passes, taken as equally long until they begin."""

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress, self._count = progress, count
        self._begun, self._before, self._last = 0, 0, 0

    def next(self) -> Progress | None:
        """The progress of the next pass."""
        if self._progress is None:
            return None
        report, left = self._progress, self._count - self._begun - 1
        self._before += self._last
        self._begun += 1
        before = self._before

        def advance(done: int, total: int) -> None:
            self._last = total
            report(before + done, before + total * (1 + left))

        return advance


def _check_writable(folder: Path) -> None:
    """Make the folder and try to write into it.

    Raises:
        StorageError: it cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"the output must be a folder; {folder} is a file. Choose another --output")
    trial = folder / ".sparcom-trial"
    write_durably(trial, [b""])
    trial.unlink(missing_ok=True)
