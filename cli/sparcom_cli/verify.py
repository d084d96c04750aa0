"""`sparcom verify`: is this archive right, or each of several? The exit status says; see `SOUND`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sparcom_cli.shared.threads import wait_asleep
from sparcom_cli.shared.waiting import waiting

if TYPE_CHECKING:
    from sparcom_data.archive import Archive
    from sparcom_data.verify import Check, Tokenize

SOUND, WRONG, UNFINISHED = 0, 1, 3  # 2 is wrong usage


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@click.option(
    "--reference", type=click.Choice(["transformers"]), help="Also compare bits, or counts, with this implementation."
)
@click.option("--sample", type=click.IntRange(min=1), default=24, show_default=True, help="Instructions to compare.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--model", help="The model's folder, where it is not where the archive says.")
@click.option("--no-tokenizer", is_flag=True, help="Do not compare token ids with the tokenisation of the text.")
def verify(
    archives: tuple[str, ...], reference: str | None, sample: int, seed: int, model: str | None, no_tokenizer: bool
) -> None:
    """Check archives against themselves, and against Hugging Face transformers.

    ARCHIVE is a folder or the address of an archive on a server, http://HOST:PORT/v1/archives/NAME/zarr.

    \b
    Exit status:
      0  nothing wrong was found; cancelled and failed instructions are reported and are not errors
      1  something wrong was found, or an archive cannot be read
      2  wrong usage
      3  nothing wrong was found, but an archive is not finished: instructions are pending or it is still open, or
         no instruction is complete
    """
    if model and len(archives) > 1:
        raise click.UsageError("--model is the folder of one archive's model; verify the archives one by one with it")
    wait_asleep()
    found = {_verified(archive, reference, sample, seed, model, no_tokenizer) for archive in archives}
    raise SystemExit(next(status for status in (WRONG, UNFINISHED, SOUND) if status in found))


def _verified(
    archive: str, reference: str | None, sample: int, seed: int, model: str | None, no_tokenizer: bool
) -> int:
    """Print what was looked at and found; return the archive's exit status."""
    from sparcom_data.archive import open_archive
    from sparcom_data.verify import coverage, verify_archive

    opened = open_archive(archive)
    where = model or opened.attributes.model.id
    with waiting(f"Checking {archive}"):
        tokenize = None if no_tokenizer else _tokenizer(opened, where)
        checks: list[Check] = verify_archive(opened, tokenize)
    if not checks[0].passed:  # not even the states can be told
        return _show(archive, checks, WRONG, "")
    covered = coverage(opened)
    if reference and covered.complete and all(check.passed for check in checks):
        checks += _compare(opened, where, sample, seed, tokenize)
    return _show(archive, checks, SOUND if covered.finished else UNFINISHED, covered.sentence())


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

    from sparcom_cli.shared.verdicts import judge_counts, judge_masks
    from sparcom_models.quiet import hide_progress_bars
    from sparcom_verification.known_differences import note_known_differences
    from sparcom_verification.reference.counts import comparable_instructions, compare_counts_with_reference
    from sparcom_verification.reference.masks import ReferenceModel, compare_with_reference, sample_indices

    counted = archive.granularity == "count"
    indices = sample_indices(archive, sample, seed, comparable_instructions(archive) if counted else None)
    info, texts, console = archive.attributes.model, archive.strings("text"), Console(stderr=True)
    with waiting("Loading the reference"), hide_progress_bars():
        reference = ReferenceModel(model, info.dtype, info.layer_ids, info.moe)

    def prompt_ids(index: int) -> np.ndarray:
        return np.asarray(tokenize([texts[index]])[0] if tokenize else [], dtype=np.int32)

    watched = track(indices, "Comparing", console=console, transient=True)
    if counted:
        checks = judge_counts(compare_counts_with_reference(archive, reference, watched, prompt_ids), info.dtype)
    else:
        checks = judge_masks(compare_with_reference(archive, reference, watched, prompt_ids), info.dtype)
    note_known_differences(checks, archive.attributes, reference.config)
    return checks


def _show(archive: str, checks: list[Check], status: int, covered: str) -> int:
    """Print checks and findings, then one sentence; return the exit status, `status` where nothing was found."""
    for check in checks:
        click.echo(f"{'ok   ' if check.passed else 'WRONG'}  {check.name:<10} {check.looked_at}")
        for finding in check.findings[:20]:
            click.echo(f"         {finding}")
        if len(check.findings) > 20:
            click.echo(f"         and {len(check.findings) - 20} more")
        for note in check.notes:
            click.echo(f"         {note}")
    wrong = sum(len(check.findings) for check in checks)
    said = f"{wrong} findings" if wrong else "nothing wrong was found" if status == SOUND else "not verified"
    click.echo(f"{archive}: {said}{f'; {covered}' if covered else ''}")
    return WRONG if wrong else status
