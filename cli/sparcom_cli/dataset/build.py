"""`sparcom dataset build`: writes HexaInst, or as much of it as there are sources for, and says what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_hexainst.build.build import Matching, NaturalHalf

TOLERANCE = 0.05


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("hexainst.jsonl"),
    show_default=True,
    help="File of JSON lines to write.",
)
@click.option(
    "--natural",
    type=click.Path(path_type=Path),
    help="Folder with the natural half's sources, or with prepared files (cls.jsonl, …).  [default: Hugging Face hub]",
)
@click.option("--synthetic-only", is_flag=True, help="Leave the natural half out.")
@click.option(
    "--per-category",
    type=click.IntRange(1, 100),
    default=100,
    show_default=True,
    help="Instructions of each category in each half.",
)
@click.option(
    "--skip",
    type=click.IntRange(0, 99),
    default=0,
    show_default=True,
    help="With --synthetic-only: pass over so many of each category first, for a file that shares none with another.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw from the sources.")
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    metavar="SOURCE=COMMIT",
    help="Read a source (flan, humaneval, triviaqa, alpaca, math500) on the hub at this commit. Repeatable.",
)
@click.option(
    "--match-length",
    is_flag=True,
    help="Keep the largest subset whose token counts are alike in all categories.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="For --match-length: a model's folder.")
@click.option(
    "--length-tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    help="For --match-length: by what share the lengths at one rank may differ; 0 for equal ones.  [default: 0.05]",
)
@click.option(
    "--within-halves",
    is_flag=True,
    help="For --match-length: match each half by itself, so that categories do not come to differ in source.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that holds something else.")
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
    from sparcom_data.instructions import check_batch
    from sparcom_hexainst.build.build import Matching, as_lines, natural_instructions, write_new
    from sparcom_hexainst.build.synthetic import synthetic_instructions

    _require_consistent(natural, synthetic_only, revisions, match_length, tokenizer, length_tolerance)
    if skip and not synthetic_only:
        raise click.UsageError("--skip passes over synthetic instructions; give --synthetic-only with it")
    instructions = synthetic_instructions(per_category, skip)
    half = None if synthetic_only else _natural_half(natural, _by_source(revisions))
    if half is not None:
        instructions += natural_instructions(half, seed, _synthetic_texts(), per_category)
        for source, commit in half.revisions.items():
            click.echo(f"{source} was read at commit {commit}")
    check_batch(instructions)  # a prepared file may have an id of the synthetic half
    if match_length and tokenizer is not None:
        tolerance = TOLERANCE if length_tolerance is None else length_tolerance
        instructions = _match(instructions, Matching(tokenizer, tolerance, within_halves))
    fresh = write_new(output, as_lines(instructions), overwrite)
    click.echo(f"{'Wrote' if fresh else 'Nothing to do: the same is in'} {output}: {_counted(instructions)}")


def _synthetic_texts() -> list[str]:
    from sparcom_hexainst.build.synthetic import synthetic_instructions

    return [item.readable for item in synthetic_instructions()]


def _require_consistent(
    natural: Path | None,
    synthetic_only: bool,
    revisions: Sequence[str],
    match_length: bool,
    tokenizer: Path | None,
    length_tolerance: float | None,
) -> None:
    if synthetic_only and (natural or revisions):
        raise click.UsageError("--synthetic-only leaves the natural half out; give no --natural or --revision with it")
    if natural and revisions:
        raise click.UsageError("--revision is a commit on the hub; a folder given with --natural has none")
    if match_length and tokenizer is None:
        raise click.UsageError("--match-length compares token counts: name the model's folder with --tokenizer")
    if (tokenizer is not None or length_tolerance is not None) and not match_length:
        raise click.UsageError("--tokenizer and --length-tolerance belong to --match-length; give it too")


def _by_source(revisions: Sequence[str]) -> dict[str, str]:
    from sparcom_hexainst.build.sources import SOURCES

    found = dict(item.partition("=")[::2] for item in revisions)
    known = [source.name for source in SOURCES]
    for name, commit in found.items():
        if name not in known or not commit:
            raise click.UsageError(f"--revision is SOURCE=COMMIT with a source of {', '.join(known)}; got {name!r}")
    return found


def _natural_half(folder: Path | None, revisions: dict[str, str]) -> NaturalHalf | None:
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
            f"{error} Only the synthetic half is built. For the natural half too, run this where the hub can be "
            "reached, or give a folder with the sources' files (--natural DIR).",
            err=True,
        )
        return None
    return NaturalHalf(fetched.found, fetched.revisions)


def _match(instructions: list[Instruction], matching: Matching) -> list[Instruction]:
    """The matched subset; says how much is left of each category, by half."""
    from sparcom_hexainst.build.build import matched
    from sparcom_hexainst.categories import CATEGORIES

    kept = matched(instructions, matching)
    of = {name: sum(item.category == name for item in instructions) for name in CATEGORIES}
    nearly = f"differ by at most {matching.tolerance:.0%} at every rank" if matching.tolerance else "are equal"
    click.echo(
        f"{len(kept) // len(CATEGORIES)} of {max(of.values())} a category kept, whose token counts {nearly}; a larger "
        "--length-tolerance keeps more, a smaller one fewer"
    )
    halves = list(dict.fromkeys(item.half for item in instructions))
    counts = {
        half: [sum((item.category, item.half) == (name, half) for item in kept) for name in CATEGORIES]
        for half in halves
    }
    for half in halves if len(halves) > 1 else []:
        listed = zip(CATEGORIES, counts[half], strict=True)
        click.echo(f"  {half}: " + ", ".join(f"{name} {count}" for name, count in listed))
    if any(len(set(found)) > 1 for found in counts.values()):
        click.echo("Categories differ in their sources now; --within-halves keeps these alike.", err=True)
    return kept


def _counted(instructions: Sequence[Instruction]) -> str:
    from sparcom_hexainst.categories import CATEGORIES, HALVES

    halves = [f"{count} {half}" for half in HALVES if (count := sum(item.half == half for item in instructions))]
    return f"{len(instructions)} instructions in {len(CATEGORIES)} categories, {' and '.join(halves)}"
