"""`sparcom analyze`: an archive in, a folder of metrics, tables, figures and a report out.

Options, the progress bar and what is printed at the end; everything else is sparcom_analysis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sparcom_analysis.measures.frequencies import Progress
    from sparcom_analysis.reading.rows import CountedTokens, Rows
    from sparcom_analysis.schema.metrics import Metrics

WIDEST_TABLE = 110  # columns of a terminal
_SHARE = click.FloatRange(0, 1, min_open=True)
_SHARE_HELP = "Share of a category's instructions from which a neuron or expert is the category's."


@click.command()
@click.argument("archive")
@click.option("--epsilon", type=_SHARE, help="Share of all neurons that is instruction-specific.  [default: 0.05]")
@click.option("--threshold", type=_SHARE, help="Instead of --epsilon: least activation frequency of such a neuron.")
@click.option(
    "--rows",
    type=click.Choice(["prompt", "response", "all"]),
    help="Whose tokens are counted.  [default: prompt, or what the archive holds instead]",
)
@click.option(
    "--exclude-self-pairs", is_flag=True, help="Show similarities without pairs of an instruction with itself."
)
@click.option("--tuned", help="Archive of the tuned twin: what tuning alters among neurons and experts.")
@click.option("--instruction", "instructions", multiple=True, help="Id to show in figure 6; may be given repeatedly.")
@click.option(
    "--tokens",
    "counted_tokens",
    type=click.Choice(["all", "content"]),
    default="all",
    show_default=True,
    help="Count all tokens, or leave out those that the chat template or the tokenizer wrote.",
)
@click.option(
    "--special-tokens",
    type=click.Choice(["count", "leave-out"]),
    default="count",
    show_default=True,
    help="Whether BOS and the marks of a chat template count.",
)
@click.option(
    "--special-token-id",
    "special_token_ids",
    type=click.IntRange(0),
    multiple=True,
    help="An id that is special, in place of those the archive knows; may be given repeatedly.",
)
@click.option(
    "--match-tokens/--no-match-tokens",
    default=None,
    help="The measures again with as many tokens of each instruction.  [default: where it can be done]",
)
@click.option("--matched-tokens", type=click.IntRange(1), help="How many.  [default: as the shortest has, from 8]")
@click.option("--share", type=_SHARE, default=0.5, show_default=True, help=_SHARE_HELP)
@click.option("--lape-top", type=_SHARE, default=0.01, show_default=True, help="Share of neurons that LAPE selects.")
@click.option(
    "--lape-filter",
    type=_SHARE,
    default=0.95,
    show_default=True,
    help="Percentile of all p, as a share, that a neuron must pass in some category to be among them.",
)
@click.option(
    "--lape-bar",
    type=_SHARE,
    default=0.95,
    show_default=True,
    help="Percentile of all p, as a share, above which a selected neuron is specific to a category.",
)
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, help="For intervals; 0: none.")
@click.option("--permutations", type=click.IntRange(0), default=9999, show_default=True, help="For tests; 0: none.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw and shuffle.")
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder for the results.")
def analyze(
    archive: str,
    epsilon: float | None,
    threshold: float | None,
    rows: Rows | None,
    exclude_self_pairs: bool,
    tuned: str | None,
    instructions: tuple[str, ...],
    counted_tokens: CountedTokens,
    special_tokens: str,
    special_token_ids: tuple[int, ...],
    match_tokens: bool | None,
    matched_tokens: int | None,
    share: float,
    lape_top: float,
    lape_filter: float,
    lape_bar: float,
    resamples: int,
    permutations: int,
    confidence: float,
    seed: int,
    output: str,
) -> None:
    """Compute metrics, tables, figures and a report from ARCHIVE (a folder, or an address of a server)."""
    if epsilon is not None and threshold is not None:
        raise click.UsageError("--epsilon and --threshold are two rules for the same thing: give one of them")
    if special_token_ids and special_tokens == "count":
        raise click.UsageError("--special-token-id says what to leave out: give --special-tokens leave-out with it")
    if instructions and tuned is None:
        raise click.UsageError("--instruction shows an instruction in both models: give --tuned with it")
    from sparcom_analysis import LapeRates
    from sparcom_analysis import analyze as run

    with _progress_bar() as progress:
        result = run(
            archive,
            output,
            tuned=tuned,
            epsilon=epsilon,
            threshold=threshold,
            rows=rows,
            exclude_self_pairs=exclude_self_pairs,
            counted_tokens=counted_tokens,
            special_tokens="leave_out" if special_tokens == "leave-out" else "count",
            special_token_ids=list(special_token_ids) or None,
            match_tokens=match_tokens,
            matched_tokens=matched_tokens,
            share=share,
            lape_rates=LapeRates(top=lape_top, filter=lape_filter, bar=lape_bar),
            resamples=resamples,
            permutations=permutations,
            confidence=confidence,
            seed=seed,
            instructions=list(instructions) or None,
            progress=progress,
        )
    from sparcom_analysis.tables.formats import visible

    for warning in result.metrics.warnings:
        click.echo(visible(f"warning: {warning}"), err=True)
    click.echo(visible("\n".join(_summary(result.metrics))))
    click.echo(f"\nreport: {result.report}")


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on stderr over the rows of the archives, and over resamples and shuffles."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading, tokens and shuffles", total=None)
        rest = bar.add_task("figures, tables and report", total=None, visible=False)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            bar.update(rest, visible=done == total)

        yield show
        bar.remove_task(rest)


def _summary(metrics: Metrics) -> list[str]:
    """What was used, and the matrices as aligned tables."""
    facts, left = metrics.instructions, metrics.instructions.left_out
    reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in left.model_dump().items() if count)
    used = (
        f"{metrics.archive.model_name}: {facts.used} of {facts.total} instructions, {facts.tokens:,} "
        f"{'prompt and response' if metrics.settings.rows == 'all' else metrics.settings.rows} tokens"
        f"{' of content' if metrics.settings.counted_tokens == 'content' else ''}"
        + (f" (left out: {reasons})" if reasons else "")
    )
    used = "\n".join([used, *_state(metrics), *_twin(metrics)])
    if metrics.components is None:
        return [used, _sizes(metrics, ""), "", *_similarity(metrics), *_answers(metrics)]
    from sparcom_analysis.reading.populations import TITLES

    named = [(metrics.of(part.component), f" of {TITLES[part.component]}") for part in metrics.components]
    first, *further = named
    others = [f"{_sizes(*part)}; their similarity is in the report" for part in further]
    return [used, _sizes(*first), *others, "", *_similarity(*first), "", *_experts(metrics), *_answers(metrics)]


def _state(metrics: Metrics) -> list[str]:
    """That the archive may still grow."""
    said = "the extraction of this archive had not ended when it was read: the numbers will change once it has"
    return [said] if metrics.archive.state == "open" else []


def _twin(metrics: Metrics) -> list[str]:
    """What it is compared with, and what differs beside the tuning."""
    part = metrics.isn_alteration
    if part is None:
        return []
    return [f"compared with {part.twin.model_name} over {part.twin.matched:,} instructions of both", *part.twin.notes]


def _answers(metrics: Metrics) -> list[str]:
    """What the report says at its top, and what could not be computed."""
    from sparcom_analysis.findings.intervals import interval_caveat
    from sparcom_analysis.findings.short import in_short

    sentences = [*in_short(metrics), *filter(None, [interval_caveat(metrics)])]
    reasons = dict.fromkeys(item.reason for item in metrics.not_computed)
    return [*([""] if sentences or reasons else []), *sentences, *(f"not computed: {reason}" for reason in reasons)]


def _sizes(metrics: Metrics, whose: str) -> str:
    """How large the sets are; `whose` are they, " of routed experts"."""
    rule = f"{metrics.settings.selection} {metrics.settings.epsilon or metrics.settings.threshold}"
    return f"instruction-specific neurons{whose}: {rule}, {metrics.isn_size.mean:,.1f} an instruction on average"


def _similarity(metrics: Metrics, whose: str = "") -> list[str]:
    """How alike categories are in the sets."""
    part = metrics.shown_similarity
    whose = f" in neurons{whose}" if whose else ""
    title = f"similarity of categories{whose} (mean Jaccard index, {_self_pairs(metrics)})"
    return [title, *_table(part.categories, part.matrix)]


def _self_pairs(metrics: Metrics) -> str:
    """Which version of equations 10 and 14 is printed."""
    return "pairs of an instruction with itself " + ("left out" if metrics.settings.exclude_self_pairs else "counted")


def _experts(metrics: Metrics) -> list[str]:
    """How alike categories are in their experts, and what tuning shifts."""
    part = metrics.shown_correlation
    if part is None:
        return []
    title = f"similarity of categories in their experts (mean Pearson correlation, {_self_pairs(metrics)})"
    lines = [title, *_table(part.categories, part.matrix)]
    if part.undefined_instructions:
        lines.append(f"{part.undefined_instructions} instructions have no variance and are in no mean")
    if metrics.expert_shift is not None:
        from sparcom_analysis.findings.experts import shift_sentence

        lines += ["", shift_sentence(metrics)]
    return lines


def _table(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> list[str]:
    """Aligned columns; where their names do not fit a terminal, columns carry the number of their row instead."""
    heads = list(names)
    if max(map(len, names)) + sum(2 + max(5, len(name)) for name in names) > WIDEST_TABLE:
        heads = [str(number) for number in range(1, len(names) + 1)]
        names = [f"{number} {name}" for number, name in zip(heads, names, strict=True)]
    widths = [max(5, len(head)) for head in heads]
    rows = [heads, *(["n/a" if value is None else f"{value:.3f}" for value in row] for row in matrix)]
    left = max(map(len, names))
    return [
        f"{name:<{left}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for name, row in zip(["", *names], rows, strict=True)
    ]
