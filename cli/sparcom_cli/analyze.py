"""`sparcom analyze`: options, a progress bar and a printed summary; sparcom_analysis does the work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sparcom_cli.shared.archives import open_named
from sparcom_cli.shared.options import AT_LEAST_1, FOLDER, POSITIONS, SHARE, Decorator, archive_key_option, optional
from sparcom_cli.shared.progress import progress_bar
from sparcom_cli.shared.summary import summary, visible

if TYPE_CHECKING:
    from xarray import DataTree

    from sparcom_analysis import Options
    from sparcom_data.archive import Archive

COUNT = click.IntRange(0)
LEVEL = click.FloatRange(0, 1, min_open=True, max_open=True)
TOKENS = click.Choice(["all", "content"])
SPECIAL = click.Choice(["count", "leave-out"])
EQUAL = "--equal-length/--no-equal-length, --match-tokens/--no-match-tokens"
READ, IDS, VENN = "prompt if captured, else response", "those the archive lists", "a typical one per category"
EIGHT = "length of the shortest with at least 8"
Pair = tuple[str, str | None]


class _Grouping(click.ParamType[Any]):
    """One or more of `category`, `source` and `half`, separated by commas."""

    name = "category|source|half,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


class _Setting(click.Option):
    """An option for the `Options` field of the same name; the default comes from that field."""

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        from sparcom_analysis import Options

        return getattr(Options(), str(self.name))


def setting(flags: str, field: str, kind: Any, text: str, shown: str | None = None, **more: Any) -> Decorator:
    """Return an option for a field of `Options`. Older names follow the first flag; --help shows `shown` as default."""
    more |= {} if shown is None else {"show_default": shown}
    return click.option(*flags.split(", "), field, cls=_Setting, type=kind, help=text, **more)


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE[:TUNED]...")
@optional("--tuned", None, None, "Compare with this archive of the fine-tuned model.", metavar="ARCHIVE")
@setting("--top, --epsilon", "top", SHARE, "Select this fraction of all neurons as ISNs.")
@setting(
    "--min-frequency, --threshold", "min_frequency", SHARE, "Select all neurons at or above this frequency instead."
)
@setting("--positions, --rows", "positions", POSITIONS, "Count prompt tokens, response tokens or both.", READ)
@setting("--tokens", "counted_tokens", TOKENS, "Count all tokens, or only the instruction's own text.")
@setting("--special-tokens", "special_tokens", SPECIAL, "Count BOS and chat template markers, or leave them out.")
@setting("--special-token-id", "special_token_ids", COUNT, "Leave this token id out. Repeatable.", IDS, multiple=True)
@setting("--group-by", "group_by", _Grouping(), "Group instructions by these fields, such as category,source.")
@setting(
    "--self-pairs/--exclude-self-pairs", "self_pairs", None, "Count or leave out pairs of an instruction with itself."
)
@setting("--instruction", "instructions", str, "Show this instruction in figure 6. Repeatable.", VENN, multiple=True)
@setting(EQUAL, "equal_length", None, "Repeat the measures on instructions subsampled to equal length.", "if possible")
@setting(
    "--equal-length-tokens, --matched-tokens",
    "equal_length_tokens",
    AT_LEAST_1,
    "Subsample instructions to this many tokens.",
    EIGHT,
)
@setting(
    "--share", "min_share", SHARE, "Require a member of a category to be an ISN of this fraction of its instructions."
)
@setting("--top-experts", "top_experts", AT_LEAST_1, "List this many most used experts.")
@setting("--lape-top", "lape_top", SHARE, "Select this fraction of neurons by LAPE.")
@setting("--lape-filter", "lape_filter", SHARE, "Require this quantile of all frequencies in at least one category.")
@setting("--lape-bar", "lape_bar", SHARE, "Assign a neuron to each category where its frequency exceeds this quantile.")
@setting("--resamples", "n_resamples", COUNT, "Draw this many bootstrap resamples for intervals; 0 for none.")
@setting("--permutations", "n_permutations", COUNT, "Draw this many label permutations for tests; 0 for none.")
@setting("--confidence", "confidence_level", LEVEL, "Set the confidence level of intervals.")
@setting("--seed", "seed", COUNT, "Seed all draws and permutations.")
@archive_key_option
@click.option("--output", required=True, type=FOLDER, help="Write the results to this folder.")
@click.pass_context
def analyze(
    ctx: click.Context, /, archives: Sequence[str], tuned: str | None, key: str | None, output: Path, **settings: Any
) -> None:
    """Compute metrics, tables, figures and a report from ARCHIVE, a folder or a URL.

    ISNs are instruction-specific neurons: those most often active over the tokens of one instruction. Give several
    archives to compare models. Write BASE:TUNED to compare a model with its fine-tuned version. For a single archive,
    --tuned does the same.
    """
    pairs = [split_pair(text) for text in archives]
    if tuned is not None:
        if len(pairs) > 1 or pairs[0][1] is not None:
            raise click.UsageError("--tuned takes a single archive; write BASE:TUNED for each pair instead")
        pairs = [(pairs[0][0], tuned)]
    if settings["instructions"] and not any(other for _, other in pairs):
        raise click.UsageError("--instruction needs base and tuned model; add --tuned")
    options = _options(ctx, settings)
    from sparcom_analysis.report.folder import check_output
    from sparcom_analysis.report.page import notes
    from sparcom_analysis.report.write import write_report

    opened = [(open_named(base, key), None if other is None else open_named(other, key)) for base, other in pairs]
    check_output(output)
    runs = {
        title: _run(*both, options) for title, both in zip(titles([base for base, _ in opened]), opened, strict=True)
    }
    report = write_report(runs if len(runs) > 1 else next(iter(runs.values())), output)
    for title, run in runs.items():
        for note in notes(run.attrs):
            click.echo(visible(f"warning: {title}: {note}" if len(runs) > 1 else f"warning: {note}"), err=True)
    click.echo(visible("\n".join(summary(runs, options))))
    click.echo(f"\nreport: {report}")


def split_pair(text: str) -> Pair:
    """Split BASE:TUNED; return the text and None if it names one archive.

    The last colon separates, unless it belongs to an address (after the scheme, in the host) or to a drive letter.
    A path that exists is never split.
    """
    if Path(text).exists():
        return text, None
    for found in reversed(list(re.finditer(":", text))):
        base, tuned = text[: found.start()], text[found.end() :]
        in_host = tuned.startswith("//") or re.search(r"://[^/]*$", base)
        is_drive = re.search(r"(^|:)[A-Za-z]$", base) and tuned[:1] in ("/", "\\")
        if base and tuned and not in_host and not is_drive:
            return base, tuned
    return text, None


def titles(archives: Sequence[Archive]) -> list[str]:
    """Return a distinct title per archive: its model's name, with the archive's name or a number if two are alike."""
    from pathlib import PurePath

    models = [PurePath(archive.attributes.model.id).name for archive in archives]
    named = [f"{model} ({PurePath(archive.path).name})" for model, archive in zip(models, archives, strict=True)]
    found = [model if models.count(model) == 1 else longer for model, longer in zip(models, named, strict=True)]
    return [
        title if found.count(title) == 1 else f"{title} {found[: index + 1].count(title)}"
        for index, title in enumerate(found)
    ]


def _options(ctx: click.Context, settings: Mapping[str, Any]) -> Options:
    """Return `Options` with the values given on the command line, and defaults elsewhere."""
    from sparcom_analysis import Options
    from sparcom_data.errors import InvalidInputError

    given = {
        name: value.replace("-", "_") if name == "special_tokens" else value
        for name, value in settings.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    try:
        return Options(**given)
    except InvalidInputError as error:
        raise click.UsageError(str(error)) from error


def _run(base: Archive, tuned: Archive | None, options: Options) -> DataTree:
    """Analyze one model, or a model and its fine-tuned version, with a progress bar."""
    from dataclasses import replace

    from sparcom_analysis import analyze as run

    if tuned is None:
        options = replace(options, instructions=None)
    with progress_bar("reading, resampling and testing", time_left=True) as update:
        return run(base, tuned, options, progress=lambda done, total: update(done, total, f"{100 * done // total} %"))
