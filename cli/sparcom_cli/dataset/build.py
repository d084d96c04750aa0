"""`sparcom dataset build`: write HexaInst, or its synthetic half if the natural sources are unreachable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparcom_cli.shared.options import FILE, PATH, option, optional

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_hexainst.build.build import Matching, NaturalHalf

TOLERANCE = click.FloatRange(0, 1, max_open=True)
DEFAULT_TOLERANCE = 0.05


@click.command()
@option("--output", FILE, Path("hexainst.jsonl"), "Write JSON lines to this file.")
@optional("--natural", PATH, "Hugging Face Hub", "Read sources, or prepared files (cls.jsonl, …), from this folder.")
@click.option("--synthetic-only", is_flag=True, help="Leave the natural half out.")
@option("--per-category", click.IntRange(1, 100), 100, "Take this many instructions per category and half.")
@option(
    "--skip", click.IntRange(0, 99), 0, "Skip this many instructions per category first. Requires --synthetic-only."
)
@option("--seed", int, 0, "Seed the draw from the sources.")
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    metavar="SOURCE=COMMIT",
    help="Read a hub source (flan, humaneval, triviaqa, alpaca, math500) at this commit. Repeatable.",
)
@click.option("--match-length", is_flag=True, help="Keep the largest subset with equal token counts in all categories.")
@optional("--tokenizer", PATH, None, "Count tokens with the tokenizer in this folder, for --match-length.")
@optional(
    "--length-tolerance",
    TOLERANCE,
    str(DEFAULT_TOLERANCE),
    "Let token counts at the same rank differ by at most this fraction, for --match-length.",
)
@click.option("--within-halves", is_flag=True, help="Match each half separately. Requires --match-length.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file that differs.")
def build(
    output: Path,
    natural: Path | None,
    synthetic_only: bool,
    per_category: int,
    skip: int,
    seed: int,
    revisions: tuple[str, ...],
    match_length: bool,
    tokenizer: Path | None,
    length_tolerance: float | None,
    within_halves: bool,
    overwrite: bool,
) -> None:
    """Build HexaInst: 600 synthetic instructions, and 600 natural ones drawn from the paper's sources."""
    if synthetic_only and (natural or revisions):
        raise click.UsageError("--synthetic-only leaves out the natural half; drop --natural and --revision")
    if natural and revisions:
        raise click.UsageError("--revision selects a commit on the hub, --natural a local folder; drop one of them")
    if skip and not synthetic_only:
        raise click.UsageError("--skip applies only to synthetic instructions; add --synthetic-only")
    if match_length and tokenizer is None:
        raise click.UsageError("--match-length compares token counts; give the model's folder with --tokenizer")
    if (tokenizer is not None or length_tolerance is not None) and not match_length:
        raise click.UsageError("--tokenizer and --length-tolerance require --match-length; add it")
    from sparcom_data.instructions import check_batch
    from sparcom_hexainst.build.build import Matching, as_lines, natural_instructions, write_new
    from sparcom_hexainst.build.synthetic import synthetic_instructions
    from sparcom_hexainst.categories import CATEGORIES

    instructions = synthetic_instructions(per_category, skip)
    half = None if synthetic_only else _natural_half(natural, _by_source(revisions))
    if half is not None:
        all_synthetic = [item.readable for item in synthetic_instructions()]
        instructions += natural_instructions(half, seed, all_synthetic, per_category)
        for source, commit in half.revisions.items():
            click.echo(f"{source} was read at commit {commit}")
    check_batch(instructions)  # a prepared file may repeat an id of the synthetic half
    if match_length and tokenizer is not None:
        tolerance = DEFAULT_TOLERANCE if length_tolerance is None else length_tolerance
        instructions = _match(instructions, Matching(tokenizer, tolerance, within_halves))
    fresh = write_new(output, as_lines(instructions), overwrite)
    halves = Counter(item.half for item in instructions)
    click.echo(
        f"{'Wrote' if fresh else 'Nothing to do, already up to date:'} {output}: {len(instructions)} instructions in "
        f"{len(CATEGORIES)} categories, {' and '.join(f'{count} {half}' for half, count in halves.items())}"
    )


def _by_source(revisions: Sequence[str]) -> dict[str, str]:
    """Return {source: commit} from SOURCE=COMMIT."""
    from sparcom_hexainst.build.sources import SOURCES

    found = dict(item.partition("=")[::2] for item in revisions)
    known = [source.name for source in SOURCES]
    for name, commit in found.items():
        if name not in known or not commit:
            raise click.UsageError(
                f"--revision must be SOURCE=COMMIT with a source of {', '.join(known)}; got {name!r}"
            )
    return found


def _natural_half(folder: Path | None, revisions: dict[str, str]) -> NaturalHalf | None:
    """Return the sources. If the hub is unreachable, print a message and return None.

    Raises:
        HubError: the hub is unreachable and --revision was given.
    """
    from sparcom_hexainst.build.build import NaturalHalf
    from sparcom_hexainst.build.hub import HubError, fetch_sources
    from sparcom_hexainst.build.local import find_sources

    if folder is not None:
        return NaturalHalf(find_sources(folder))
    try:
        fetched = fetch_sources(revisions)
    except HubError as error:
        if revisions:
            raise
        click.echo(
            f"{error} Only the synthetic half is built. To include the natural half, run this where the hub is "
            "reachable, or give a folder with the sources' files (--natural DIR).",
            err=True,
        )
        return None
    return NaturalHalf(fetched.found, fetched.revisions)


def _match(instructions: list[Instruction], matching: Matching) -> list[Instruction]:
    """Return the length-matched subset; print how much of each category and half is left."""
    from sparcom_hexainst.build.build import matched
    from sparcom_hexainst.categories import CATEGORIES

    kept = matched(instructions, matching)
    largest = max(Counter(item.category for item in instructions).values())
    criterion = f"differ by at most {matching.tolerance:.0%} at every rank" if matching.tolerance else "are equal"
    click.echo(
        f"Kept {len(kept) // len(CATEGORIES)} of {largest} instructions per category; their token counts {criterion}. "
        "A larger --length-tolerance keeps more, a smaller one fewer."
    )
    counts = Counter((item.half, item.category) for item in kept)
    halves = dict.fromkeys(item.half for item in instructions)
    if len(halves) > 1:
        for half in halves:
            click.echo(f"  {half}: " + ", ".join(f"{name} {counts[half, name]}" for name in CATEGORIES))
    if any(len({counts[half, name] for name in CATEGORIES}) > 1 for half in halves):
        click.echo("Categories now differ in their sources; --within-halves keeps them balanced.", err=True)
    return kept
