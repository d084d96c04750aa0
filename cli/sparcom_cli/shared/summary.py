"""Printed summary of `sparcom analyze`: data read, similarity matrix, one sentence per measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparcom_cli.shared.text import MIN_CELL_WIDTH, format_table

if TYPE_CHECKING:
    from xarray import DataTree

    from sparcom_analysis import Options

MAX_TABLE_WIDTH = 110  # columns of a terminal


def visible(text: str) -> str:
    """Replace unprintable characters other than line ends with U+FFFD."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def summary(runs: Mapping[str, DataTree], options: Options) -> list[str]:
    """Return the lines for one model, or fewer lines per model for several."""
    from sparcom_analysis.report.page import interval_caveat, lead_sentences

    lines = [_settings(options)]
    for title, run in runs.items():
        lines += [*([""] if len(runs) > 1 else []), *_facts(title, run)]
        lines += ["", *(_similarity(run) if len(runs) == 1 else []), *lead_sentences(run, "length_control"), ""]
        lines += [f"not computed: {one}" for one in dict.fromkeys(gap["reason"] for gap in run.attrs["not_computed"])]
    caveat = interval_caveat(next(iter(runs.values())).attrs["settings"])
    return [*lines, caveat] if caveat else lines


def _settings(options: Options) -> str:
    """Return the settings in one line."""
    parts = [options.rule, f"groups by {' and '.join(options.group_by)}"]
    parts.append(f"{options.n_resamples:,} bootstrap resamples" if options.n_resamples else "no intervals")
    parts.append(f"{options.n_permutations:,} permutations" if options.n_permutations else "no tests")
    return "settings: " + ", ".join([*parts, f"seed {options.seed}"])


def _facts(title: str, run: DataTree) -> list[str]:
    """Return the data read, a warning if the archive may still grow, and the fine-tuned model."""
    facts = run.attrs["instructions"]
    reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in facts["left_out"].items() if count)
    settings = run.attrs["settings"]
    positions = "prompt and response" if settings["positions"] == "all" else settings["positions"]
    content = " content" if settings["counted_tokens"] == "content" else ""
    lines = [
        f"{title}: {facts['used']} of {facts['total']} instructions, {facts['tokens']:,} {positions}{content} tokens"
        + (f" (left out: {reasons})" if reasons else "")
    ]
    if run.attrs["archive"]["state"] == "open":
        lines.append("the extraction of this archive was still running; the numbers will change")
    if "tuned" in run.attrs:
        matched = run["finetuning_jaccard"].attrs["instructions"]
        lines.append(f"compared with {run.attrs['tuned']['model_name']} on {matched:,} matched instructions")
    return lines


def _similarity(run: DataTree) -> list[str]:
    """Return the matrix of equation 10 as an aligned table."""
    if "similarity" not in run.children:
        return []
    ds = run["similarity"].to_dataset()
    counted = bool(ds.attrs["self_pairs_shown"])
    title = (
        f"mean Jaccard similarity of categories ({ds.attrs['population_title']}; pairs of an instruction with itself "
        f"{'included' if counted else 'omitted'})"
    )
    values = ds["value"].sel(self_pairs=counted).values.tolist()
    return [title, *_matrix([str(name) for name in ds["category"].values], values), ""]


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> list[str]:
    """Return an aligned table; columns are numbered if their names would not fit a terminal."""
    header = list(names)
    if max(map(len, names)) + sum(2 + max(MIN_CELL_WIDTH, len(name)) for name in names) > MAX_TABLE_WIDTH:
        header = [str(number) for number in range(1, len(names) + 1)]
        names = [f"{number} {name}" for number, name in zip(header, names, strict=True)]
    rows = [[None if value != value else value for value in row] for row in matrix]  # NaN becomes None
    return format_table(header, zip(names, rows, strict=True))
