"""`sparcom verify`: check one or more archives. The exit status is SOUND, WRONG or UNFINISHED."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.archives import open_named
from sparcom_cli.shared.options import archive_key_option
from sparcom_cli.shared.threads import wait_asleep
from sparcom_cli.shared.waiting import waiting

if TYPE_CHECKING:
    from sparcom_data.archive import Archive
    from sparcom_data.verify import Check, Tokenize

SOUND, WRONG, UNFINISHED = 0, 1, 3  # 2 is wrong usage
MAX_FINDINGS = 20  # printed per check


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@click.option(
    "--reference", type=click.Choice(["transformers"]), help="Also compare bits, or counts, with this implementation."
)
@click.option(
    "--sample", type=click.IntRange(min=1), default=24, show_default=True, help="Compare this many instructions."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed the sample.")
@click.option("--model", help="Load the model from this folder, not from the one that the archive names.")
@archive_key_option
@click.option("--no-tokenizer", is_flag=True, help="Skip the comparison of token ids with the tokenized text.")
def verify(archives: tuple[str, ...], **options: Any) -> None:
    """Check that archives are consistent, or compare them with Hugging Face transformers.

    ARCHIVE is a folder or the address of an archive on a server, http://HOST:PORT/v1/archives/NAME/zarr.

    \b
    Exit status:
      0  nothing wrong was found; failed and cancelled instructions are reported, but are not errors
      1  something wrong was found, or an archive cannot be read
      2  wrong usage
      3  nothing wrong was found, but an archive is unfinished: it is open, has pending instructions, or has no
         complete instruction
    """
    if options["model"] and len(archives) > 1:
        raise click.UsageError("--model applies to one archive; verify each archive separately with its own --model")
    wait_asleep()
    found = {_verify(archive, **options) for archive in archives}
    raise SystemExit(next(status for status in (WRONG, UNFINISHED, SOUND) if status in found))


def _verify(
    archive: str,
    *,
    reference: str | None,
    sample: int,
    seed: int,
    model: str | None,
    key: str | None,
    no_tokenizer: bool,
) -> int:
    """Check one archive and print the result; return its exit status."""
    from sparcom_data.verify import coverage, verify_archive

    opened = open_named(archive, key)
    folder = model or opened.attributes.model.id
    with waiting(f"Checking {archive}"):
        tokenize = None if no_tokenizer else _tokenizer(opened, folder)
        checks: list[Check] = verify_archive(opened, tokenize)
    status, covered = WRONG, ""
    if checks[0].passed:  # otherwise the states of instructions cannot be read
        found = coverage(opened)
        if reference and found.complete and all(check.passed for check in checks):
            checks += _compare(opened, folder, sample, seed, tokenize)
        status, covered = SOUND if found.finished else UNFINISHED, found.sentence()
    wrong = show_checks(checks)
    result = f"{wrong} findings" if wrong else "nothing wrong was found" if status == SOUND else "not verified"
    click.echo(f"{archive}: {result}{f'; {covered}' if covered else ''}")
    return WRONG if wrong else status


def _tokenizer(archive: Archive, model: str) -> Tokenize:
    from sparcom_data.errors import InvalidInputError
    from sparcom_extractor.prompts import load_tokenizer, tokenizer_sha256

    tokenizer = load_tokenizer(model)
    expected, found = archive.attributes.model.tokenizer_sha256, tokenizer_sha256(tokenizer, model)
    if expected != found:
        problem = f"the tokenizer must be the archive's, SHA-256 {expected[:12]}…; that of {model} is {found[:12]}…"
        remedy = "Give the right folder with --model, or skip the comparison with --no-tokenizer"
        raise InvalidInputError(f"{problem}. {remedy}")
    capture = archive.attributes.capture
    special = capture.add_special_tokens and capture.prompt_format == "raw"
    return lambda texts: tokenizer(list(texts), add_special_tokens=special)["input_ids"]


def _compare(archive: Archive, model: str, sample: int, seed: int, tokenize: Tokenize | None) -> list[Check]:
    """Compare masks and routes, or counts, with transformers."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from sparcom_cli.shared.verdicts import judge_counts, judge_masks
    from sparcom_models.quiet import hide_progress_bars
    from sparcom_verification.known_differences import note_known_differences
    from sparcom_verification.reference.comparison import compare_counts, compare_masks, sample_indices
    from sparcom_verification.reference.model import ReferenceModel

    indices = sample_indices(archive, sample, seed)
    info, texts = archive.attributes.model, archive.strings("text")
    with waiting("Loading the reference"), hide_progress_bars():
        reference = ReferenceModel(model, info.dtype, info.layer_ids, info.moe)

    def prompt_ids(index: int) -> np.ndarray:
        return np.asarray(tokenize([texts[index]])[0] if tokenize else [], dtype=np.int32)

    shown = track(indices, "Comparing", console=Console(stderr=True), transient=True)
    if archive.granularity == "count":
        checks = judge_counts(compare_counts(archive, reference, shown, prompt_ids), info.dtype)
    else:
        checks = judge_masks(compare_masks(archive, reference, shown, prompt_ids), info.dtype)
    note_known_differences(checks, archive.attributes, reference.config)
    return checks


def show_checks(checks: list[Check]) -> int:
    """Print each check with its findings and notes; return the number of findings."""
    for check in checks:
        click.echo(f"{'ok   ' if check.passed else 'WRONG'}  {check.name:<10} {check.looked_at}")
        hidden = len(check.findings) - MAX_FINDINGS
        more = [f"and {hidden} more"] if hidden > 0 else []
        for line in [*check.findings[:MAX_FINDINGS], *more, *check.notes]:
            click.echo(f"         {line}")
    return sum(len(check.findings) for check in checks)
