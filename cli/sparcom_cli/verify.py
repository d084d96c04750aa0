"""`sparcom verify`: is this archive right, or each of several? Exit status 1 when anything is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparcom_cli.threads import wait_asleep
from sparcom_cli.waiting import waiting

if TYPE_CHECKING:
    from sparcom_data.archive import Archive
    from sparcom_data.verify import Check, Tokenize


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=click.Choice(["transformers"]), help="Also compare bits, or counts, with this implementation."
)
@click.option("--sample", type=click.IntRange(min=1), default=24, show_default=True, help="Instructions to compare.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--model", help="The model's folder, where it is not where the archive says.")
@click.option("--no-tokenizer", is_flag=True, help="Do not compare token ids with the tokenisation of the text.")
def verify(
    archives: tuple[Path, ...], reference: str | None, sample: int, seed: int, model: str | None, no_tokenizer: bool
) -> None:
    """Check archives against themselves, and against Hugging Face transformers."""
    if model and len(archives) > 1:
        raise click.UsageError("--model is the folder of one archive's model; verify the archives one by one with it")
    wait_asleep()
    right = [_verified(archive, reference, sample, seed, model, no_tokenizer) for archive in archives]
    raise SystemExit(0 if all(right) else 1)


def _verified(
    archive: Path, reference: str | None, sample: int, seed: int, model: str | None, no_tokenizer: bool
) -> bool:
    """Whether nothing wrong was found; says what was looked at."""
    from sparcom_data.archive import open_archive
    from sparcom_data.verify import verify_archive

    opened = open_archive(archive)
    where = model or opened.attributes.model.id
    with waiting(f"Checking {archive}"):
        tokenize = None if no_tokenizer else _tokenizer(opened, where)
        checks: list[Check] = verify_archive(opened, tokenize)
    if reference and all(check.passed for check in checks):
        checks += _compare(opened, where, sample, seed, tokenize)
    _show(archive, checks)
    return all(check.passed for check in checks)


def _tokenizer(archive: Archive, model: str) -> Tokenize:
    from sparcom_data.errors import InvalidInputError
    from sparcom_extractor.prompts import load_tokenizer, tokenizer_sha256

    tokenizer = load_tokenizer(model)
    expected, found = archive.attributes.model.tokenizer_sha256, tokenizer_sha256(tokenizer, model)
    if expected != found:
        raise InvalidInputError(
            [
                f"the tokenizer must be the archive's, SHA-256 {expected[:12]}…; that of {model} is {found[:12]}…. "
                "Give the right folder with --model, or leave the comparison out with --no-tokenizer"
            ]
        )
    capture = archive.attributes.capture
    special = capture.add_special_tokens and capture.prompt_format == "raw"
    return lambda texts: tokenizer(list(texts), add_special_tokens=special)["input_ids"]


def _compare(archive: Archive, model: str, sample: int, seed: int, tokenize: Tokenize | None) -> list[Check]:
    """The archive's masks and routes, or its counts, against the reference's."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from sparcom_cli.verdicts import judge_counts, judge_masks
    from sparcom_extractor.models.tiny import no_bars
    from sparcom_extractor.reference import ReferenceModel, compare_with_reference, sample_indices
    from sparcom_extractor.reference_counts import comparable_instructions, compare_counts_with_reference

    counted = archive.granularity == "count"
    indices = sample_indices(archive, sample, seed, comparable_instructions(archive) if counted else None)
    info, texts, console = archive.attributes.model, archive.strings("text"), Console(stderr=True)
    with waiting("Loading the reference"), no_bars():
        reference = ReferenceModel(model, info.dtype, info.layer_ids, info.moe)

    def prompt_ids(index: int) -> np.ndarray:
        return np.asarray(tokenize([texts[index]])[0] if tokenize else [], dtype=np.int32)

    watched = track(indices, "Comparing", console=console, transient=True)
    if counted:
        return judge_counts(compare_counts_with_reference(archive, reference, watched, prompt_ids), info.dtype)
    return judge_masks(compare_with_reference(archive, reference, watched, prompt_ids), info.dtype)


def _show(archive: Path, checks: list[Check]) -> None:
    for check in checks:
        click.echo(f"{'ok   ' if check.passed else 'WRONG'}  {check.name:<10} {check.looked_at}")
        for finding in check.findings[:20]:
            click.echo(f"         {finding}")
        if len(check.findings) > 20:
            click.echo(f"         and {len(check.findings) - 20} more")
    wrong = sum(len(check.findings) for check in checks)
    click.echo(f"{archive}: {'nothing wrong was found' if not wrong else f'{wrong} findings'}")
