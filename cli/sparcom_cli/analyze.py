"""`sparcom analyze`: options, a progress bar and a printed summary; sparcom_analysis does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import AT_LEAST_1, FOLDER, POSITIONS, SHARE, option, optional
from sparcom_cli.shared.progress import progress_bar
from sparcom_cli.shared.text import MIN_CELL_WIDTH, format_table

if TYPE_CHECKING:
    from sparcom_analysis.schema.metrics import Metrics

MAX_TABLE_WIDTH = 110  # columns of a terminal
COUNT = click.IntRange(0)
SPECIAL_TOKENS = click.Choice(["count", "leave-out"])


@click.command()
@click.argument("archive")
@optional("--epsilon", SHARE, "0.05 unless --threshold", "Select this share of all neurons as ISNs.")
@optional("--threshold", SHARE, None, "Select neurons from this activation frequency instead of by --epsilon.")
@optional("--rows", POSITIONS, "prompt, else response", "Count prompt tokens, response tokens or both.")
@click.option("--exclude-self-pairs", is_flag=True, help="Leave pairs of an instruction with itself out.")
@optional("--tuned", None, None, "Compare with this archive of the fine-tuned model.", metavar="ARCHIVE")
@optional("--instruction", None, None, "Show this instruction in figure 6. Repeatable.", multiple=True, metavar="ID")
@option("--tokens", click.Choice(["all", "content"]), "all", "Count all tokens, or only the instruction's own text.")
@option("--special-tokens", SPECIAL_TOKENS, "count", "Count BOS and chat template markers, or leave them out.")
@optional("--special-token-id", COUNT, "those the archive lists", "Leave this token id out. Repeatable.", multiple=True)
@optional("--match-tokens/--no-match-tokens", None, "if possible", "Repeat the measures at equal length.", default=None)
@optional("--matched-tokens", AT_LEAST_1, "shortest length from 8 on", "Subsample instructions to this many tokens.")
@option("--share", SHARE, 0.5, "Assign a neuron or expert to a category if this share of its instructions has it.")
@option("--lape-top", SHARE, 0.01, "Select this share of neurons by LAPE.")
@option("--lape-filter", SHARE, 0.95, "Require this quantile of all activation probabilities in at least one category.")
@option("--lape-bar", SHARE, 0.95, "Call a selected neuron specific to categories above this quantile.")
@option("--resamples", COUNT, 1000, "Draw this many bootstrap resamples for intervals; 0 for none.")
@option("--permutations", COUNT, 9999, "Shuffle labels this often for tests; 0 for none.")
@option("--confidence", click.FloatRange(0, 1, min_open=True, max_open=True), 0.95, "Set the level of intervals.")
@option("--seed", COUNT, 0, "Seed all draws and shuffles.")
@click.option("--output", required=True, type=FOLDER, help="Write the results to this folder.")
def analyze(archive: str, output: Any, **options: Any) -> None:
    """Compute metrics, tables, figures and a report from ARCHIVE, a folder or a server's address.

    ISNs are instruction-specific neurons: those most often active over the tokens of one instruction.
    """
    if options["epsilon"] is not None and options["threshold"] is not None:
        raise click.UsageError("--epsilon and --threshold are two rules for the same thing: give one of them")
    if options["special_token_id"] and options["special_tokens"] == "count":
        raise click.UsageError("--special-token-id names tokens to leave out: add --special-tokens leave-out")
    if options["instruction"] and options["tuned"] is None:
        raise click.UsageError("--instruction shows an instruction in both models: add --tuned")
    from sparcom_analysis import LapeRates
    from sparcom_analysis import analyze as run
    from sparcom_analysis.tables.formats import visible

    renamed = {
        "special_tokens": options.pop("special_tokens").replace("-", "_"),
        "counted_tokens": options.pop("tokens"),
        "special_token_ids": list(options.pop("special_token_id")) or None,
        "instructions": list(options.pop("instruction")) or None,
        "lape_rates": LapeRates(**{name: options.pop(f"lape_{name}") for name in ("top", "filter", "bar")}),
    }
    with progress_bar("reading, tokens and shuffles", time_left=True) as update:

        def show(done: int, total: int) -> None:
            update(done, total, f"{done:,}/{total:,}" + (" · figures, tables and report" if done == total else ""))

        result = run(archive, output, progress=show, **options, **renamed)
    for warning in result.metrics.warnings:
        click.echo(visible(f"warning: {warning}"), err=True)
    click.echo(visible("\n".join(_summary(result.metrics))))
    click.echo(f"\nreport: {result.report}")


def _summary(metrics: Metrics) -> list[str]:
    """Return the settings in use, the similarity matrices as aligned tables, and the report's findings."""
    views = [("", metrics)]
    if metrics.components is not None:
        from sparcom_analysis.archive.populations import TITLES

        views = [(f" of {TITLES[one.component]}", metrics.of(one.component)) for one in metrics.components]
    sizes = [
        f"instruction-specific neurons{name}: {view.settings.selection} "
        f"{view.settings.epsilon or view.settings.threshold}, {view.isn_size.mean:,.1f} per instruction on average"
        + ("; see the report for their similarity" if at else "")
        for at, (name, view) in enumerate(views)
    ]
    name, first = views[0]
    where, part = f" in neurons{name}" if name else "", first.shown_similarity
    title = f"similarity of categories{where} (mean Jaccard index, {_self_pairs(metrics)})"
    similarity = _matrix(part.categories, part.matrix)
    return [*_facts(metrics), *sizes, "", title, *similarity, *_experts(metrics), *_findings(metrics)]


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
