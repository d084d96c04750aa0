"""Compute every measure of one archive, or of a base and a tuned archive, in a loop over the registry.

Each archive is read in one pass per neuron population and one pass over the router. The tree has one node per measure.
The main population (routed experts if there are any) is at the top. Other populations are in groups named after them.
Results of the tuned model alone are in the group `tuned`:

    similarity                          eq. 10, base model
    shared_expert_neuron/similarity     eq. 10, base model, shared experts
    tuned/similarity                    eq. 10, tuned model
"""

from __future__ import annotations

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
from sparcom_analysis.measures.measure import NotComputableError, Subject
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
    """Compute every measure and return a tree of Datasets. Writes no files; see `write_report`.

    Args:
        base: an archive, or its path or URL.
        tuned: the archive of the fine-tuned model, for the measures of fine-tuning.
        options, **changes: see `Options`.
        progress: called with units of work done and in total.
        block_bytes, scratch: as for `find_isns`.

    Returns:
        One node per measure (see the module docstring). Root attributes record inputs and measures not computed.

    Raises:
        InvalidInputError: an option is invalid, or an instruction to show is not complete in both archives.
        UnsupportedArchiveError: the models do not match, or an archive lacks the data that an option needs.
        IncompleteArchiveError, DamagedArchiveError, StorageError: reading an archive failed.
    """
    archives = [opened(archive) for archive in (base, tuned) if archive is not None]
    options, steps = Options.of(options, **changes), _Steps(progress)
    _check(archives, options)
    first, pair = archives[0], len(archives) == 2
    names = [item.name for item in populations(first)] or [choose_population(first).name]
    routed = first.moe is not None and "router" in first.attributes.capture.components
    times = {"isn": len(names), "experts": int(routed), "isn_comparison": pair * len(names)}
    times["expert_comparison"] = pair * routed
    steps.count = len(archives) * (len(names) + routed)
    steps.count += sum(times[measure.needs] * (1 + pair * measure.also_tuned) for measure in REGISTRY)
    isns: dict[Any, list[IsnSets]] = {name: [] for name in names}
    for name, found in isns.items():
        for archive in archives:
            how: dict[str, Any] = {"population": name, "scratch": scratch, "block_bytes": block_bytes}
            how |= {"pool": archive is first, "least": 2 if archive is first else 1}
            found.append(find_isns(archive, options, progress=steps.next(), **how))
    experts = [
        find_ises(archive, options, least=2 if archive is first else 1, progress=steps.next(), block_bytes=block_bytes)
        for archive in archives
        if routed
    ]
    subjects = _subjects(isns, experts)
    nodes, missing = {}, []
    for measure in REGISTRY:
        for group, needs, subject in subjects:
            if needs != measure.needs or (group.startswith("tuned/") and not measure.also_tuned):
                continue
            path = f"{group}{measure.name}"
            try:
                ds = measure.compute(subject, steps.next())
            except NotComputableError as error:
                missing.append({"measure": path, "reason": str(error)})
                continue
            ds.attrs = {"measure": measure.name, "title": measure.title, "equation": measure.equation} | ds.attrs
            nodes[path] = ds
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), **nodes})
    comparison = next((subject for *_, subject in subjects if isinstance(subject, IsnComparison)), None)
    tree.attrs = run_facts(archives, isns, options, comparison) | {"not_computed": missing}
    if progress is not None:
        progress(steps.count * steps.UNIT, steps.count * steps.UNIT)
    for archive in archives:
        archive.require_same()  # over HTTP, the passes check for changes only every few seconds
    return tree


class _Steps:
    """One progress report over several passes; each pass counts as `UNIT` units, whatever its length."""

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


def _subjects(isns: dict[Any, list[IsnSets]], experts: list[ExpertCounts]) -> list[tuple[str, str, Subject]]:
    """Return group, kind and subject of each population and router, and of the comparisons between models."""
    found: list[tuple[str, str, Subject]] = []
    known = None
    for place, (name, sides) in enumerate(isns.items()):
        group = "" if place == 0 else f"{name}/"
        found.append((group, "isn", sides[0]))
        if len(sides) == 2:
            base, tuned = sides
            known = match_instructions(base, tuned, known)
            found.append((group, "isn_comparison", IsnComparison(base, tuned, known)))
            found.append((f"tuned/{group}", "isn", tuned))
    found += [(group, "experts", counts) for group, counts in zip(("", "tuned/"), experts, strict=False)]
    if len(experts) == 2:
        both = match_instructions(experts[0], experts[1], known)
        found.append(("", "expert_comparison", ExpertComparison(experts[0], experts[1], both)))
    return found


def _check(archives: list[Archive], options: Options) -> None:
    """Check that the archives support the options, before reading any mask."""
    base = archives[0]
    if len(archives) == 2:
        check_models(base, archives[1])
    if options.special_tokens == "leave_out":
        for archive in archives:
            special_ids(archive, options.special_token_ids)
    if options.must_match_lengths and base.granularity == "count":
        raise UnsupportedArchiveError(
            f"equal lengths need one mask per token; {base.path} holds one count per instruction. "
            "Omit equal_length and equal_length_tokens (--equal-length, --equal-length-tokens), or extract "
            "again with granularity='token'"
        )
    _check_shown(archives, options)
    spans = [counted_rows(archive, options, least=2 if archive is base else 1) for archive in archives]
    if options.must_match_lengths:
        drawn = draw_tokens(base, spans[0], TokenDraw(options.equal_length_tokens, options.seed))
        check_enough(base, drawn)
    if len(archives) == 2:
        check_instructions(base, archives[1], (spans[0], spans[1]))


def _check_shown(archives: list[Archive], options: Options) -> None:
    if options.instructions is None:
        return
    if len(archives) == 1:
        raise InvalidInputError(
            "showing instructions needs a tuned archive; none was given. Add --tuned, or omit the instructions"
        )
    complete = [{a.instructions.id[i] for i in a.instructions.complete.tolist()} for a in archives]
    if problems := [
        f"an instruction to show must be complete in both archives; {name!r} is not. Use ids from instruction/id"
        for name in options.instructions
        if not all(name in ids for ids in complete)
    ]:
        raise InvalidInputError(problems)
