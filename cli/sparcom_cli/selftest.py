"""`sparcom selftest`: check capture on this machine with one tiny model. Exit status 1 if anything differs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), required=True, help="Run the engines on this device.")
@click.option("--moe", is_flag=True, help="Use an MoE model instead of a dense one.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep model and archive in this new or empty folder.")
def selftest(device: Literal["cuda", "cpu"], moe: bool, folder: Path | None) -> None:
    """Check capture on this machine with a tiny random model.

    Compares tokens and log-probabilities with and without capture, and the archive with Hugging Face transformers.
    Needs no network. Exit status 1 if anything differs by more than rounding.
    """
    import asyncio
    from tempfile import TemporaryDirectory

    from sparcom_cli.shared.verdicts import judge_masks
    from sparcom_cli.verify import show_checks
    from sparcom_data.errors import InvalidInputError
    from sparcom_verification.selftest import run_selftest

    _require_device(device)
    if folder and folder.exists() and any(folder.iterdir()):
        raise InvalidInputError(f"folder must be new or empty; {folder} is not. Choose another or remove it")
    with TemporaryDirectory(prefix="sparcom-selftest-") as temporary:
        work = (folder or Path(temporary)).absolute()  # not resolved: links are the user's choice
        work.mkdir(parents=True, exist_ok=True)
        checks, comparison = asyncio.run(run_selftest(work, moe=moe))
    findings = show_checks([*checks, *judge_masks(comparison, "float32")])
    click.echo(f"FAILED: {findings} findings" if findings else "passed")
    raise SystemExit(1 if findings else 0)


def _require_device(device: str) -> None:
    """Refuse a device that vLLM does not use on this machine, before any work."""
    import warnings

    from sparcom_data.errors import InvalidInputError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises deprecation warnings of its own
        from vllm.platforms import current_platform
    if (found := current_platform.device_type) != device:
        problem = f"--device must be vLLM's device on this machine, {found or 'none'}; it is {device}"
        raise InvalidInputError(f"{problem}. Use --device {found}" if found else f"{problem}. Check the GPU's driver")
