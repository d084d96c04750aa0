"""`sparcom analyze`: options, a progress bar and a printed summary; sparcom_analysis does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import AT_LEAST_1, FOLDER
from sparcom_cli.shared.progress import progress_bar
from sparcom_cli.shared.text import MIN_CELL_WIDTH, format_table

if TYPE_CHECKING:
    from sparcom_analysis.schema.metrics import Metrics

MAX_TABLE_WIDTH = 110  # columns of a terminal
_SHARE = click.FloatRange(0, 1, min_open=True)
_COUNT = click.IntRange(0)


@click.command()
@click.argument("archive")
@click.option(
    "--epsilon", type=_SHARE, help="Select this share of neurons as ISNs.", show_default="0.05 unless --threshold"
)
@click.option("--threshold", type=_SHARE, help="Select neurons by activation frequency instead of by --epsilon.")
@click.option(
    "--rows",
    type=click.Choice(["prompt", "response", "all"]),
    help="Count the tokens of the prompt, the response or both.",
    show_default="prompt, or what the archive holds",
)
@click.option(
    "--exclude-self-pairs", is_flag=True, help="Leave pairs of an instruction with itself out of similarities."
)
@click.option("--tuned", metavar="ARCHIVE", help="Compare with this archive of the fine-tuned model.")
@click.option(
    "--instruction", "instructions", multiple=True, metavar="ID", help="Show this instruction in figure 6. Repeatable."
)
@click.option(
    "--tokens",
    "counted_tokens",
    type=click.Choice(["all", "content"]),
    default="all",
    help="Count all tokens, or leave out those that the chat template or the tokenizer added.",
)
@click.option(
    "--special-tokens",
    type=click.Choice(["count", "leave-out"]),
    default="count",
    help="Count BOS and chat template markers, or leave them out.",
)
@click.option(
    "--special-token-id",
    "special_token_ids",
    type=_COUNT,
    multiple=True,
    help="Treat this token id as special, instead of those that the archive lists. Repeatable.",
)
@click.option(
    "--match-tokens/--no-match-tokens",
    default=None,
    help="Repeat the measures on instructions subsampled to equal length.",
    show_default="if possible",
)
@click.option(
    "--matched-tokens",
    type=AT_LEAST_1,
    help="Subsample to this many tokens per instruction.",
    show_default="length of the shortest instruction of at least 8",
)
@click.option(
    "--share",
    type=_SHARE,
    default=0.5,
    help="Assign a neuron or expert to a category if this share of its instructions has it.",
)
@click.option("--lape-top", type=_SHARE, default=0.01, help="Select this share of neurons by LAPE.")
@click.option(
    "--lape-filter",
    type=_SHARE,
    default=0.95,
    help="Require this quantile of all activation probabilities in at least one category.",
)
@click.option(
    "--lape-bar",
    type=_SHARE,
    default=0.95,
    help="Call a selected neuron specific to a category above this quantile of all activation probabilities.",
)
@click.option(
    "--resamples", type=_COUNT, default=1000, help="Draw this many bootstrap resamples for intervals; 0 for none."
)
@click.option("--permutations", type=_COUNT, default=9999, help="Shuffle labels this often for tests; 0 for none.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    help="Set the confidence level of intervals.",
)
@click.option("--seed", type=_COUNT, default=0, help="Seed all draws and shuffles.")
@click.option("--output", required=True, type=FOLDER, help="Write the results to this folder.")
def analyze(archive: str, output: Any, **options: Any) -> None:
    """Compute metrics, tables, figures and a report from ARCHIVE, a folder or a server's address.

    ISNs are instruction-specific neurons: those most often active over the tokens of one instruction.
    """
    if options["epsilon"] is not None and options["threshold"] is not None:
        raise click.UsageError("--epsilon and --threshold are two rules for the same thing: give one of them")
    if options["special_token_ids"] and options["special_tokens"] == "count":
        raise click.UsageError("--special-token-id names tokens to leave out: add --special-tokens leave-out")
    if options["instructions"] and options["tuned"] is None:
        raise click.UsageError("--instruction shows an instruction in both models: add --tuned")
    from sparcom_analysis import LapeRates
    from sparcom_analysis import analyze as run
    from sparcom_analysis.tables.formats import visible

    options["special_tokens"] = options["special_tokens"].replace("-", "_")
    options["lape_rates"] = LapeRates(**{name: options.pop(f"lape_{name}") for name in ("top", "filter", "bar")})
    for name in ("special_token_ids", "instructions"):
        options[name] = list(options[name]) or None
    with progress_bar("reading, tokens and shuffles", time_left=True) as update:

        def show(done: int, total: int) -> None:
            update(done, total, f"{done:,}/{total:,}" + (" · figures, tables and report" if done == total else ""))

        result = run(archive, output, progress=show, **options)
    for warning in result.metrics.warnings:
        click.echo(visible(f"warning: {warning}"), err=True)
    click.echo(visible("\n".join(_summary(result.metrics))))
    click.echo(f"\nreport: {result.report}")


def _summary(metrics: Metrics) -> list[str]:
    """Return the settings in use, the similarity matrices as aligned tables, and the report's findings."""
    views = [("", metrics)]
    if metrics.components is not None:
        from sparcom_analysis.reading.populations import TITLES

        views = [(f" of {TITLES[one.component]}", metrics.of(one.component)) for one in metrics.components]
    sizes = [
        _sizes(view, name) + ("; see the report for their similarity" if at else "")
        for at, (name, view) in enumerate(views)
    ]
    name, first = views[0]
    where, part = f" in neurons{name}" if name else "", first.shown_similarity
    title = f"similarity of categories{where} (mean Jaccard index, {_self_pairs(metrics)})"
    return [
        *_facts(metrics),
        *sizes,
        "",
        title,
        *_matrix(part.categories, part.matrix),
        *_experts(metrics),
        *_findings(metrics),
    ]


def _facts(metrics: Metrics) -> list[str]:
    """Return what was read, whether the archive may still grow, and what it is compared with."""
    facts, settings = metrics.instructions, metrics.settings
    reasons = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in facts.left_out.model_dump().items() if count
    )
    rows = "prompt and response" if settings.rows == "all" else settings.rows
    lines = [
        f"{metrics.archive.model_name}: {facts.used} of {facts.total} instructions, {facts.tokens:,} {rows} tokens"
        + (" of content" if settings.counted_tokens == "content" else "")
        + (f" (left out: {reasons})" if reasons else "")
    ]
    if metrics.archive.state == "open":
        lines.append("the extraction of this archive was still running; the numbers will change")
    if (part := metrics.isn_alteration) is not None:
        lines.append(f"compared with {part.twin.model_name} over {part.twin.matched:,} instructions of both")
        lines += part.twin.notes
    return lines


def _sizes(metrics: Metrics, name: str) -> str:
    rule = f"{metrics.settings.selection} {metrics.settings.epsilon or metrics.settings.threshold}"
    return f"instruction-specific neurons{name}: {rule}, {metrics.isn_size.mean:,.1f} per instruction on average"


def _self_pairs(metrics: Metrics) -> str:
    """Return which version of equations 10 and 14 is printed."""
    return "pairs of an instruction with itself " + ("left out" if metrics.settings.exclude_self_pairs else "counted")


def _experts(metrics: Metrics) -> list[str]:
    """Return the similarity of categories in their experts, and how tuning shifts routing; none for dense models."""
    part = metrics.shown_correlation
    if part is None:
        return []
    title = f"similarity of categories in their experts (mean Pearson correlation, {_self_pairs(metrics)})"
    lines = ["", title, *_matrix(part.categories, part.matrix)]
    if part.undefined_instructions:
        lines.append(f"{part.undefined_instructions} instructions have no variance and are in no mean")
    if metrics.expert_shift is not None:
        from sparcom_analysis.findings.experts import shift_sentence

        lines += ["", shift_sentence(metrics)]
    return lines


def _findings(metrics: Metrics) -> list[str]:
    """Return the sentences at the top of the report, and what could not be computed."""
    from sparcom_analysis.findings.intervals import interval_caveat
    from sparcom_analysis.findings.short import in_short

    sentences = [*in_short(metrics), *filter(None, [interval_caveat(metrics)])]
    sentences += [f"not computed: {reason}" for reason in dict.fromkeys(item.reason for item in metrics.not_computed)]
    return ["", *sentences] if sentences else []


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> list[str]:
    """Return an aligned table; columns carry row numbers where their names would not fit a terminal."""
    header = list(names)
    if max(map(len, names)) + sum(2 + max(MIN_CELL_WIDTH, len(name)) for name in names) > MAX_TABLE_WIDTH:
        header = [str(number) for number in range(1, len(names) + 1)]
        names = [f"{number} {name}" for number, name in zip(header, names, strict=True)]
    return format_table(header, zip(names, matrix, strict=True))
