"""Computes every measure of an archive, or of a base and a tuned model: the loop over the registry.

Each population of neurons is one pass over its masks, the router one more; a tuned model the same over its own. The
tree has a node per measure. Those of the population that the archive is about (routed experts if there are any) are at
the top; others are in a group of their name; those of the tuned model alone are in the group `tuned`:

    similarity                          eq. 10 of the base model
    shared_expert_neuron/similarity     the same of shared experts
    tuned/similarity                    the same of the tuned model
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.archive.counted_rows import TokenDraw, check_enough, counted_rows, draw_tokens, special_ids
from sparcom_analysis.archive.populations import choose_population, populations
from sparcom_analysis.compare import ExpertComparison, IsnComparison
from sparcom_analysis.frequencies import Progress, opened
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.isn import IsnSets, find_isns
from sparcom_analysis.matching import check_instructions, check_models, match_instructions
from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import Measure, NotComputableError, Subject
from sparcom_analysis.options import Options
from sparcom_analysis.report.facts import run_facts
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError


def analyze(
    base: Archive | str | Path,
    tuned: Archive | str | Path | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    scratch: Path | None = None,
    **changes: Any,
) -> xr.DataTree:
    """Compute every measure and return them as a tree of Datasets; nothing is written (see `write_report`).

    Args:
        base: an archive, its path or address.
        tuned: one of the fine-tuned model: what tuning changes among neurons and experts.
        options, **changes: see `Options`.
        progress: called with units of work done and in all.
        block_bytes, scratch: as for `find_isns`.

    Returns:
        A node per measure (see the module); attributes of the root say what was read, and what could not be computed.

    Raises:
        InvalidInputError: an option has no such value, or an instruction to show is not complete in both archives.
        UnsupportedArchiveError: the archives are not of a model and its tuned version, or lack what was asked for.
        IncompleteArchiveError, DamagedArchiveError, StorageError: as reading says.
    """
    first, second = opened(base), None if tuned is None else opened(tuned)
    options = Options.of(options, **changes)
    _check(first, second, options)
    run = _Run(first, second, options, _Steps(progress), block_bytes, scratch)
    tree = run.compute()
    for archive in filter(None, (first, second)):
        archive.require_same()  # over HTTP the passes look only every few seconds
    return tree


class _Steps:
    """One progress over several passes of unlike length: each counts as a thousandth part of `count` steps."""

    UNIT = 1000

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._begun, self.count = progress, 0, 1

    def next(self) -> Progress | None:
        """Return the progress of the next step."""
        if self._progress is None:
            return None
        report, before = self._progress, self._begun * self.UNIT
        self._begun += 1

        def advance(done: int, total: int) -> None:
            report(before + done * self.UNIT // max(total, 1), max(self.count, self._begun) * self.UNIT)

        advance(0, 1)
        return advance

    def finish(self) -> None:
        """Report that all is done."""
        if self._progress is not None:
            self._progress(self.count * self.UNIT, self.count * self.UNIT)


class _Run:
    """The subjects of one analysis, each read once, and the loop over the measures."""

    def __init__(
        self,
        base: Archive,
        tuned: Archive | None,
        options: Options,
        steps: _Steps,
        block_bytes: int,
        scratch: Path | None,
    ) -> None:
        self.archives = [base] if tuned is None else [base, tuned]
        self.options, self.steps = options, steps
        self.block_bytes, self.scratch = block_bytes, scratch
        self.populations = [item.name for item in populations(base)] or [choose_population(base).name]
        self.routed = base.moe is not None and "router" in base.attributes.capture.components

    def compute(self) -> xr.DataTree:
        """Read everything, then compute every measure that the archives allow."""
        self.steps.count = len(self.archives) * (len(self.populations) + self.routed) + self._measures()
        isns = {name: [self._isn(archive, name) for archive in self.archives] for name in self.populations}
        experts = [self._experts(archive) for archive in self.archives] if self.routed else []
        jobs = list(self._jobs(isns, experts))
        nodes, missing = {}, []
        for path, measure, subject in jobs:
            try:
                ds = measure.compute(subject, self.steps.next())
            except NotComputableError as error:
                missing.append({"measure": path, "reason": str(error)})
                continue
            ds.attrs = {"measure": measure.name, "title": measure.title, "equation": measure.equation} | ds.attrs
            nodes[path] = ds
        tree = xr.DataTree.from_dict({"/": xr.Dataset(), **nodes})
        pair = next((subject for _, _, subject in jobs if isinstance(subject, IsnComparison)), None)
        tree.attrs = run_facts(self.archives, isns, self.options, pair) | {"not_computed": missing}
        self.steps.finish()
        return tree

    def _measures(self) -> int:
        """Return how many nodes the tree will have."""
        pair = len(self.archives) == 2
        times = {
            "isn": len(self.populations),
            "experts": int(self.routed),
            "isn_comparison": pair * len(self.populations),
            "expert_comparison": int(pair and self.routed),
        }
        return sum(times[one.needs] * (1 + (pair and one.also_tuned)) for one in REGISTRY)

    def _isn(self, archive: Archive, name: Any) -> IsnSets:
        base = archive is self.archives[0]
        return find_isns(
            archive,
            self.options,
            population=name,
            pool=base,
            least=2 if base else 1,
            progress=self.steps.next(),
            block_bytes=self.block_bytes,
            scratch=self.scratch,
        )

    def _experts(self, archive: Archive) -> ExpertCounts:
        least = 2 if archive is self.archives[0] else 1
        return find_ises(archive, self.options, least=least, progress=self.steps.next(), block_bytes=self.block_bytes)

    def _jobs(
        self, isns: dict[Any, list[IsnSets]], experts: list[ExpertCounts]
    ) -> Iterator[tuple[str, Measure, Subject]]:
        """Yield path, measure and subject of every node, in the order of the registry."""
        subjects = _subjects(isns, experts)
        for measure in REGISTRY:
            for group, needs, subject in subjects:
                if needs == measure.needs and (measure.also_tuned or not group.startswith("tuned/")):
                    yield f"{group}{measure.name}", measure, subject


def _subjects(isns: dict[Any, list[IsnSets]], experts: list[ExpertCounts]) -> list[tuple[str, str, Subject]]:
    """Return group, kind and subject of everything that was read, and the comparisons of both models."""
    found: list[tuple[str, str, Subject]] = []
    known = None
    for place, (name, sides) in enumerate(isns.items()):
        group = "" if place == 0 else f"{name}/"
        found.append((group, "isn", sides[0]))
        if len(sides) == 2:
            known = match_instructions(sides[0], sides[1], known)
            found.append((group, "isn_comparison", IsnComparison(sides[0], sides[1], known)))
            found.append((f"tuned/{group}", "isn", sides[1]))
    if experts:
        found.append(("", "experts", experts[0]))
        if len(experts) == 2:
            found.append(
                (
                    "",
                    "expert_comparison",
                    ExpertComparison(experts[0], experts[1], match_instructions(experts[0], experts[1], known)),
                )
            )
            found.append(("tuned/", "experts", experts[1]))
    return found


def _check(base: Archive, tuned: Archive | None, options: Options) -> None:
    """Refuse what these archives cannot give, before the first mask is read."""
    archives = [base] if tuned is None else [base, tuned]
    if tuned is not None:
        check_models(base, tuned)
    if options.special_tokens == "leave_out":
        for archive in archives:
            special_ids(archive, options.special_token_ids)
    if options.must_match_lengths and base.granularity == "count":
        raise UnsupportedArchiveError(
            f"equal lengths need masks of single tokens; {base.path} holds counts over all tokens of an instruction. "
            "Leave equal_length and equal_length_tokens (--equal-length, --equal-length-tokens) out, or extract again "
            "with granularity='token'"
        )
    _check_shown(archives, options)
    spans = [counted_rows(archive, options, least=2 if archive is base else 1) for archive in archives]
    if options.must_match_lengths:
        drawn = draw_tokens(base, spans[0], TokenDraw(options.equal_length_tokens, options.seed))
        check_enough(base, drawn)
    if tuned is not None:
        check_instructions(base, tuned, (spans[0], spans[1]))


def _check_shown(archives: list[Archive], options: Options) -> None:
    if options.instructions is None:
        return
    if len(archives) == 1:
        raise InvalidInputError(
            "instructions to show are compared with a tuned archive; there is none. Give --tuned, or none of them"
        )
    complete = [{a.instructions.id[i] for i in a.instructions.complete.tolist()} for a in archives]
    if problems := [
        f"an instruction to show must be complete in both archives; {name!r} is not. Give ids of instruction/id"
        for name in options.instructions
        if not all(name in ids for ids in complete)
    ]:
        raise InvalidInputError(problems)
