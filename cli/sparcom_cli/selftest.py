"""`sparcom selftest`: does capture do on this machine what it promises, and what does it cost? Status 1 where not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), required=True, help="What the engines run on.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("selftest.json"),
    show_default=True,
    help="The report, rewritten after every step.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    help="When it must have ended; what does not fit is listed as not run.",
)
@click.option("--quick", is_flag=True, help="One model, one round of timings less.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep models, archives and logs in this new folder.")
@click.option("--only", multiple=True, help="Run only steps with this in their names, and what they need. Repeatable.")
def selftest(
    device: Literal["cuda", "cpu"],
    output: Path,
    minutes: float,
    quick: bool,
    folder: Path | None,
    only: tuple[str, ...],
) -> None:
    """Check capture on this machine, and time it: kernels, tokens, masks and speed.

    Needs no network and no model: small ones with random weights are made on the spot. The exit status is 1 where a
    check fails; a speed below its goal is reported.
    """
    from sparcom_verification.selftest.run import SelftestSettings, run_selftest

    if device == "cuda":
        _require_gpu()
    settings = SelftestSettings(device, output, minutes, quick, folder, only)
    results = run_selftest(settings, click.echo)
    raise SystemExit(1 if any(result.failed for result in results) else 0)


def _require_gpu() -> None:
    """Find out before anything is made whether there is a device."""
    import torch

    from sparcom_data.errors import InvalidInputError

    if not torch.cuda.is_available():
        raise InvalidInputError(
            [f"--device cuda needs a GPU that torch can use; torch {torch.__version__} sees none. Use --device cpu"]
        )
