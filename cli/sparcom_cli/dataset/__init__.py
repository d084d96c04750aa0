"""`sparcom dataset`: build, check and annotate files of instructions."""

from __future__ import annotations

import click

from sparcom_cli.dataset.agreement import agreement
from sparcom_cli.dataset.annotate import annotate
from sparcom_cli.dataset.build import build
from sparcom_cli.dataset.check import check


@click.group(commands=[build, check, annotate, agreement])
def dataset() -> None:
    """Build, check and annotate files of instructions."""
